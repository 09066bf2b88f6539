"""Cross-validation: the samples of train in K parts, each held out once. Shapes: N samples."""

from __future__ import annotations

import warnings

import numpy
import torch
from torch import Tensor

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.sources import GroupedSource, LabelledSource, ValuedSource
from bigmodel_cli.core.types import Source
from bigmodel_cli.data.subset import Subset

BINS = 10
"""Numbers are stratified by their tenths."""


def hold_out(train: Source, folds: int, fold: int, seed: int) -> tuple[Subset, Subset]:
    """(the rest, fold `fold` of 1 to `folds`) of `train`.

    Raises:
        InputError: there is no such fold, or see :func:`fold_of_each`.
    """
    if fold > folds:
        raise InputError(f"data.hold_out = {fold}", f"expected 1 to data.folds = {folds}")
    held = fold_of_each(train, folds, seed) == fold - 1
    return _part(train, ~held), _part(train, held)


def fold_of_each(train: Source, folds: int, seed: int) -> Tensor:
    """(N,) int64, the fold of each sample, from 0.

    Each class is spread evenly over the folds, numbers by their tenths; samples of one group are in one fold, and so
    are equal texts and files. Labels that are several a sample are not balanced, only shuffled.

    Raises:
        InputError: the samples have no labels, or there are fewer samples, or groups, than folds.
    """
    from sklearn.model_selection import KFold, StratifiedGroupKFold, StratifiedKFold

    strata, groups = _strata(train), _groups(train)
    distinct = len(train) if groups is None else len(groups.unique())
    if distinct < folds:
        what = "samples" if distinct == len(train) else "groups of samples"
        raise InputError(f"data.folds = {folds}", f"expected at most {distinct}, the {what} in train")
    how = {"n_splits": folds, "shuffle": True, "random_state": seed}
    result = torch.zeros(len(train), dtype=torch.int64)
    with warnings.catch_warnings():  # a class with fewer samples than folds: see rare_classes
        warnings.simplefilter("ignore", UserWarning)
        if groups is not None and distinct < len(train):
            parts = StratifiedGroupKFold(**how).split(strata, strata, groups.numpy())
        elif numpy.bincount(strata).max() < folds:  # then StratifiedKFold raises
            parts = KFold(**how).split(strata)
        else:
            parts = StratifiedKFold(**how).split(strata, strata)
        for k, (_, held) in enumerate(parts):
            result[torch.from_numpy(held)] = k
    return result


def rare_classes(train: Source, folds: int) -> list[int]:
    """The labels with fewer samples than folds, so that some folds hold none of them."""
    labels = _class_labels(train)
    counts = torch.bincount(labels) if labels is not None else torch.zeros(0, dtype=torch.int64)
    return ((counts > 0) & (counts < folds)).nonzero().flatten().tolist()


def _part(train: Source, chosen: Tensor) -> Subset:
    """The chosen samples; a subset of a subset is one of its source, as it is for what looks up the rows of a table."""
    places = chosen.nonzero().flatten()
    return Subset(train.source, train.indices[places]) if isinstance(train, Subset) else Subset(train, places)


def _groups(train: Source) -> Tensor | None:
    whole = train.source if isinstance(train, Subset) else train
    if not isinstance(whole, GroupedSource):
        return None
    return whole.groups[train.indices] if isinstance(train, Subset) else whole.groups


def _class_labels(train: Source) -> Tensor | None:
    if not isinstance(train, LabelledSource) or train.labels.dim() != 1 or train.labels.is_floating_point():
        return None
    return train.labels


def _strata(train: Source) -> numpy.ndarray:
    """(N,) int64, what is spread evenly over the folds."""
    labels = _class_labels(train)
    if labels is not None:
        return numpy.unique(labels.numpy(), return_inverse=True)[1]
    if not isinstance(train, ValuedSource):
        raise InputError("data.folds: samples without labels", "expected data of a classifier, of labels or of numbers")
    values = train.label_values
    if values.shape[1] > 1 or values.isnan().any():
        return numpy.zeros(len(values), dtype=numpy.int64)
    ranks = values[:, 0].argsort(stable=True).argsort()
    return (ranks * min(BINS, len(ranks)) // len(ranks)).numpy()
