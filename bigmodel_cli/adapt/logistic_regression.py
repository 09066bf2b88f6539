"""The optimal linear head for features of a frozen backbone, found by logistic regression.

Shapes: N samples, D features, K classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from bigmodel_cli.adapt.linear_fit import EXACT, ROUGH, Fit, cross_entropy, principal
from bigmodel_cli.core.answering import Answers
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.tasks import Classifies
from bigmodel_cli.core.types import Solve, Start
from bigmodel_cli.data.thread_map import SlowProgress

Strength = Annotated[float, Field(gt=0)]
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""Inverse regularization strengths (scikit-learn's C) to choose from."""
MAX_ITER = 1000
FOLDS = 5
CROSS_VALIDATED = 10_000  # samples up to which folds of them choose; a val split of a tenth is enough then
MIN_VAL = 200  # val samples from which they choose by themselves
HELD_OUT = 1_000  # samples held out in turn from which no further fold would change the choice
PRIOR_SAMPLES = 20  # as many samples' worth of the mean variance is mixed into each feature's own
UNKNOWN_BIAS = -30.0  # of a class missing from train
RISEN = 1.02
"""A strength whose loss is so many times that of a weaker one is the last to be tried."""
Solution = tuple[Tensor, Tensor]
"""Weight (K,R) and bias (K,), float64."""


@dataclass(frozen=True)
class Labelled:
    """Coordinates (N,R), classes (N,) and weights (N,) of samples."""

    x: Tensor
    y: Tensor
    w: Tensor

    def __getitem__(self, places: Tensor) -> Labelled:
        return Labelled(self.x[places], self.y[places], self.w[places])


Parts = list[tuple[Labelled, Labelled]]
"""Samples to fit, and others to measure on."""


def linear_head(start: Start, method: str) -> nn.Linear:
    """The model's head, which logistic regression can replace.

    Raises:
        InputError: the task has no classes, or the head is not one linear layer with a bias.
    """
    task = start.task
    if not isinstance(task, Answers) or (method != "probe" and not isinstance(task, Classifies)):
        raise InputError(f"{method}: {start.task.name.replace('_', ' ')} has no classes", "expected a classifier")
    head = start.model.get_submodule(start.head)
    if not isinstance(head, nn.Linear):
        what = f"{method}: the model's head is {type(head).__name__}"
        raise InputError(what, "expected a linear layer", "--freeze-backbone")
    if head.bias is None:
        raise InputError(f"{method}: the model's head has no bias, which the solution needs", hint="--freeze-backbone")
    return head


def solver(classes: int, strengths: Sequence[float], max_iter: int) -> Solve:
    """Multinomial logistic regression; its penalty is chosen by cross-validated log loss on the training features.

    Of many samples, the val split chooses: it is large then, and accuracy or loss on a few samples would be a lottery.
    """

    def solve(
        train: Tensor, labels: Tensor, weights: Tensor, val: Tensor, val_labels: Tensor
    ) -> tuple[Tensor, Tensor, str]:
        # Standardize features so that the penalty treats all alike; the scale is folded into the weights below.
        mean, scale = train.double().mean(0), feature_scale(train.double())
        basis = principal((train - mean) / scale)
        data = Labelled(basis.coordinates, labels, weights.double())
        known = val_labels >= 0
        seen = ((val[known] - mean) / scale) @ basis.directions
        parts, chosen = _held_out(data, Labelled(seen, val_labels[known], torch.ones(len(seen)).double()))
        progress = SlowProgress(f"solving for a head of {classes:,} classes", len(parts) * len(strengths) + 1)
        losses = _losses(parts, basis.moments, classes, strengths, max_iter, progress)
        # Nothing to choose with, of one sample a class: the middle of those that did best on few samples.
        best = min(losses, key=losses.__getitem__) if losses else sorted(strengths)[len(strengths) // 2]
        coefficients, intercept = ClassFit(data, basis.moments, classes, max_iter, EXACT)(best)
        progress.finish()
        weight = (coefficients @ basis.directions.T) / scale
        tried = f"strength {best:g} of {len(losses)} tried" if losses else f"strength {best:g}"
        note = f"logistic regression, solved exactly: {tried}, {chosen}"
        return weight.float(), (intercept - weight @ mean).float(), note

    return solve


def feature_scale(train: Tensor) -> Tensor:
    """(N,D) features -> (D,) deviations to divide by: of few samples drawn towards their common size (Smyth 2004).

    The deviation of three samples is close to nothing for some of a thousand features, which would then rule the
    solution: of 5 images of each class that costs 7 points of accuracy (benchmarks/RESULTS-published.md).
    """
    variance = train.var(0, correction=0)
    count = len(train)
    mixed = (count * variance + PRIOR_SAMPLES * variance.mean()) / (count + PRIOR_SAMPLES)
    return mixed.sqrt().clamp(min=1e-6)


def _held_out(data: Labelled, val: Labelled) -> tuple[Parts, str]:
    """What a penalty is chosen by, and a line on it: folds of few samples, the val split of many, or nothing."""
    count = len(data.y)
    folds = list(_folds(data.y)) if count <= CROSS_VALIDATED or len(val.y) < MIN_VAL else []
    if folds:
        most = -(-HELD_OUT * len(folds) // count)
        parts = [(data[inside], data[outside]) for inside, outside in folds[:most]]
        if most < len(folds):
            return parts, f"chosen on {sum(len(held.y) for _, held in parts):,} of {count:,} training samples"
        return parts, f"chosen by {len(folds)}-fold cross-validation on {count} training samples"
    if len(val.y) >= MIN_VAL:
        return [(data, val)], f"chosen on {len(val.y)} val samples"
    return [], "the default"


def _folds(y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Stratified folds: the places to fit and to measure. None if no class has two samples, or all are of one class."""
    from sklearn.model_selection import StratifiedKFold

    counts = y.bincount()
    count = min(FOLDS, int(counts.max()))
    if count < 2 or (counts > 0).sum() < 2:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class with fewer samples than folds, or many classes
        found = list(StratifiedKFold(count, shuffle=True, random_state=0).split(y[:, None], y.numpy()))
    for inside, outside in found:
        yield torch.from_numpy(inside), torch.from_numpy(outside)


def _losses(
    parts: Parts, moments: Tensor, classes: int, strengths: Sequence[float], max_iter: int, progress: SlowProgress
) -> dict[float, float]:
    """The log loss of each strength, weakest first, on what its fits have not seen: until it rises.

    The strongest take most iterations by far, and are worse once a weaker one was too strong.
    """
    found: dict[float, float] = {}
    fits = [ClassFit(inside, moments, classes, max_iter, ROUGH) for inside, _ in parts]
    for strength in sorted(strengths) if parts else ():
        found[strength] = 0.0
        for fit, (_, held) in zip(fits, parts, strict=True):
            weight, bias = fit(strength)
            found[strength] += nn.functional.cross_entropy(held.x @ weight.T + bias, held.y, reduction="sum").item()
            progress.step()
        if found[strength] > RISEN * min(found.values()):
            break
    return found


class ClassFit:
    """Fits `data` at one strength after another, each from the last. A class without a sample gets a very low bias."""

    def __init__(self, data: Labelled, moments: Tensor, classes: int, max_iter: int, tolerance: float) -> None:
        self.classes, self.width = classes, data.x.shape[1]
        self.present, y = data.y.unique(return_inverse=True)
        shares = torch.zeros(len(self.present)).double().index_add_(0, y, data.w) / data.w.sum()
        self.fit = Fit(data.x, moments, y, data.w, shares, cross_entropy, shares.log(), max_iter, tolerance)

    def __call__(self, strength: float) -> Solution:
        weight = torch.zeros(self.classes, self.width).double()
        bias = torch.full((self.classes,), UNKNOWN_BIAS).double()
        # Of two classes, one vector is penalised that tells them apart, as elsewhere: twice the square of its halves.
        of_two = 0.5 if len(self.present) == 2 else 1.0
        weight[self.present], bias[self.present] = self.fit(strength * of_two)
        return weight, bias
