"""The optimal linear head for features of a frozen backbone, found by logistic regression.

Shapes: N samples, D features, K classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from bigmodel_cli.core.answering import Answers
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.tasks import Classifies
from bigmodel_cli.core.types import Solve, Start

Strength = Annotated[float, Field(gt=0)]
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""Inverse regularization strengths (scikit-learn's C) to choose from."""
MAX_ITER = 1000
FOLDS = 5
CROSS_VALIDATED = (
    10_000  # samples up to which every strength is fitted FOLDS times; a val split of a tenth is enough then
)
MIN_VAL = 200  # val samples from which they choose by themselves
PRIOR_SAMPLES = 20  # as many samples' worth of the mean variance is mixed into each feature's own
UNKNOWN_BIAS = -30.0  # of a class missing from train
RISEN = 1.02
"""A strength whose loss is so many times that of a weaker one is the last to be tried."""
Solution = tuple[np.ndarray, np.ndarray]
"""Weight (K,D) and bias (K,)."""
Parts = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Features (N,D), labels (N,) and weights (N,) to fit, and the features and labels to measure on."""
Held = Callable[[], Parts]
"""Copies them only while they are used."""


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
        x, basis = _compact((train - mean) / scale)
        y, w = labels.numpy(), weights.double().numpy()
        known = val_labels >= 0
        x_val, y_val = (((val[known] - mean) / scale) @ basis).numpy(), val_labels[known].numpy()
        folds = list(_folds(y)) if len(y) <= CROSS_VALIDATED or len(y_val) < MIN_VAL else []
        if folds:
            held: list[Held] = [partial(_split, x, y, w, inside, outside) for inside, outside in folds]
            chosen = f"chosen by {len(folds)}-fold cross-validation on {len(y)} training samples"
        else:  # nothing to choose with, of one sample a class: the middle of those that did best on few samples
            held = [lambda: (x, y, w, x_val, y_val)] if len(y_val) >= MIN_VAL else []
            chosen = f"chosen on {len(y_val)} val samples" if held else "the default"
        losses = _losses(held, classes, strengths, max_iter) if held else {}
        best = min(losses, key=losses.__getitem__) if held else sorted(strengths)[len(strengths) // 2]
        fit = _fitter(classes, max_iter)
        *_, solution = (fit(x, y, w, strength) for strength in sorted(strengths) if strength <= best)
        coefficients, intercept = (torch.from_numpy(part) for part in solution)
        weight = (coefficients @ basis.T) / scale
        tried = f"strength {best:g} of {len(losses)} tried" if held else f"strength {best:g}"
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


def _compact(x: Tensor) -> tuple[np.ndarray, Tensor]:
    """(N,D) features -> (N,R) coordinates in an orthonormal basis (D,R) of their span, R = min(N, D).

    The optimum lies in that span, and has the same norm there: a few samples make a small problem.
    """
    if len(x) >= x.shape[1]:
        return x.numpy(), torch.eye(x.shape[1], dtype=x.dtype)
    basis = torch.linalg.qr(x.T).Q
    return (x @ basis).numpy(), basis


def _folds(y: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Stratified folds; none if no class has two samples, or all are of one class."""
    from sklearn.model_selection import StratifiedKFold

    counts = np.bincount(y)
    count = min(FOLDS, int(counts.max()))
    if count < 2 or (counts > 0).sum() < 2:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class with fewer samples than folds
        yield from StratifiedKFold(count, shuffle=True, random_state=0).split(y[:, None], y)


def _split(x: np.ndarray, y: np.ndarray, w: np.ndarray, inside: np.ndarray, outside: np.ndarray) -> Parts:
    return x[inside], y[inside], w[inside], x[outside], y[outside]


def _losses(held: Sequence[Held], classes: int, strengths: Sequence[float], max_iter: int) -> dict[float, float]:
    """The log loss of each strength, weakest first, on what its fits have not seen: until it rises.

    The strongest take most iterations by far, and are worse once a weaker one was too strong.
    """
    found: dict[float, float] = {}
    fits = [_fitter(classes, max_iter) for _ in held]
    for strength in sorted(strengths):
        found[strength] = 0.0
        for fit, part in zip(fits, held, strict=True):
            x, y, w, x_out, y_out = part()
            found[strength] += _log_loss(fit(x, y, w, strength), x_out, y_out)
        if found[strength] > RISEN * min(found.values()):
            break
    return found


def _fitter(classes: int, max_iter: int) -> Callable[[np.ndarray, np.ndarray, np.ndarray, float], Solution]:
    """Fits features (N,D), labels (N,) and weights (N,) at a strength; each fit starts from the last one."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=max_iter, warm_start=True)

    def fit(x: np.ndarray, y: np.ndarray, w: np.ndarray, strength: float) -> Solution:
        if len(np.unique(y)) < 2:  # nothing to separate
            bias = np.full(classes, UNKNOWN_BIAS)
            bias[y[0]] = 0.0
            return np.zeros((classes, x.shape[1])), bias
        model.C = strength
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # close enough to compare strengths
            model.fit(x, y, w)
        return _coefficients(model, classes)

    return fit


def _coefficients(model: Any, classes: int) -> Solution:
    """Weight (K,D) and bias (K,) of a fitted regression; a class missing from train gets a very low bias."""
    coefficients, intercepts = model.coef_, model.intercept_
    if len(coefficients) == 1:  # binary: scikit-learn stores one row
        coefficients = np.concatenate([-coefficients, coefficients]) / 2
        intercepts = np.concatenate([-intercepts, intercepts]) / 2
    weight = np.zeros((classes, coefficients.shape[1]))
    bias = np.full(classes, UNKNOWN_BIAS)
    weight[model.classes_], bias[model.classes_] = coefficients, intercepts
    return weight, bias


def _log_loss(solution: Solution, x: np.ndarray, y: np.ndarray) -> float:
    """The summed log loss of `solution` on features (N,D) with labels (N,)."""
    weight, bias = (torch.from_numpy(part) for part in solution)
    logits = torch.from_numpy(x) @ weight.T + bias
    return nn.functional.cross_entropy(logits, torch.from_numpy(y), reduction="sum").item()
