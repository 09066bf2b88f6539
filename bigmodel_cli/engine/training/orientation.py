"""Whether left and right tell classes apart, so that mirror images would be of the wrong class.

Shapes: N images, D features, K classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bigmodel_cli.core.recipe import Recipe
from bigmodel_cli.core.sources import LabelledSource, SourceWrapper
from bigmodel_cli.core.types import Batch, DataBundle, Source
from bigmodel_cli.engine.build.finetune_defaults import some_of
from bigmodel_cli.engine.build.model import head_name
from bigmodel_cli.engine.device.placement import choose_placement
from bigmodel_cli.engine.device.ranks import read_ranks
from bigmodel_cli.engine.inference.batch_size import forward_pass
from bigmodel_cli.engine.training.cached_features import feature_fn, no_vector_reason
from bigmodel_cli.engine.training.starting_point import task_and_model, trained_start

LOOKED_AT = 256
"""Images that are compared with their mirror images."""
FEWEST = 20
FOLDS = 5
STRENGTH = 0.01
"""scikit-learn's C, of some hundred samples of a thousand features."""
SHARE = 0.65
"""Share of images that fit their class better than their mirror images do from which mirroring does harm."""
DEVIATIONS = 3.0
"""So many standard deviations of chance above a half it must be, too."""


@dataclass(frozen=True)
class Orientation:
    """Of `count` images, `share` fit their class better than their mirror images do; a half is chance."""

    share: float
    count: int

    @property
    def matters(self) -> bool:
        return self.share >= SHARE and (self.share - 0.5) * 2 * math.sqrt(self.count) >= DEVIATIONS


_known: dict[str, Orientation | None] = {}
"""What was found in this process: ``--method auto`` asks again for each method that it tries."""


class MirrorImages(SourceWrapper):
    """Every image of a source, mirrored."""

    def gather(self, indices: Tensor) -> Batch:
        batch = self.source.gather(indices)
        return {**batch, "image": batch["image"].flip(-1)}


def orientation(recipe: Recipe, bundle: DataBundle, train: Source) -> Orientation | None:
    """Compare images of `train`, which have one class each, with their mirror images, as the starting weights see them.

    None if there are too few, they have several classes each, or the head is no linear layer on a vector.

    Raises:
        InputError: the recipe's start does not fit the data.
        MachineError: its weights are not on this machine.
    """
    if not isinstance(train, LabelledSource) or train.labels.dim() != 1 or len(train) < FEWEST:
        return None
    asked = repr((recipe.model, recipe.data, recipe.start.checkpoint, recipe.start.pretrained))
    if asked not in _known:
        found = _differences(recipe, bundle, train)
        _known[asked] = None if found is None else fits_better(*found)
    return _known[asked]


def _differences(recipe: Recipe, bundle: DataBundle, train: Source) -> tuple[Tensor, Tensor] | None:
    """(N,D) features of some images less those of their mirror images, and their labels (N,); None without a vector."""
    some, head = some_of(train, LOOKED_AT), head_name(recipe)
    task, model, _ = task_and_model(recipe, bundle, train, None, trained_start(recipe))
    if not isinstance(model.get_submodule(head), nn.Linear) or no_vector_reason(model, task, head):
        return None  # such as a convolution of 1 x 1, or a layer that sees each place of an image
    placement, forward = choose_placement(recipe.placement, ranks=read_ranks()), feature_fn(task, head)
    model.to(placement.device)
    pair: list[Tensor] = []
    labels = torch.empty(0)
    with torch.inference_mode(), placement.autocast():
        for source in (train, MirrorImages(train)):
            batches = list(forward_pass(model, task, source, placement, recipe.train.eval_batch_size, some))
            pair.append(torch.cat([forward(model, batch)["features"] for batch in batches]).double().cpu())
            labels = torch.cat([batch["label"] for batch in batches]).cpu()
    return pair[0] - pair[1], labels


def fits_better(differences: Tensor, labels: Tensor) -> Orientation | None:
    """How often an image fits its class better than its mirror image does, told from (N,D) `differences` of features.

    If a class holds both an image and its mirror image with equal chance, then a difference d is as likely as -d. The
    score of a linear classifier without an intercept, fitted on other images, changes its sign with d. So chance is a
    half, for any number of classes, balanced or not. None if a single class has two images.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold

    kept = torch.isin(labels, torch.nonzero(torch.bincount(labels) >= 2).flatten())
    x = differences[kept] / differences[kept].square().mean(0).sqrt().clamp(min=1e-6)
    y = labels[kept]
    if len(y) < FEWEST or len(y.unique()) < 2:
        return None
    folds = min(FOLDS, int(torch.bincount(y)[y].min()))
    better = 0.0
    for inside, outside in StratifiedKFold(folds, shuffle=True, random_state=0).split(x.numpy(), y.numpy()):
        fitted = LogisticRegression(C=STRENGTH, fit_intercept=False, max_iter=200).fit(x[inside].numpy(), y[inside])
        weight = torch.from_numpy(fitted.coef_)
        scores = x[outside] @ (torch.cat([-weight, weight]) if len(weight) == 1 else weight).T
        own = torch.searchsorted(torch.from_numpy(fitted.classes_), y[outside])
        margin = scores.gather(1, own[:, None])[:, 0] - scores.mean(1)
        better += ((margin > 0).double() + (margin == 0).double() / 2).sum().item()
    return Orientation(better / len(y), len(y))
