"""Subsets of a split, and the split of train into train and validation."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import numpy
import torch
from torch import Tensor

from bigmodel_cli.core.errors import InputError, shorten
from bigmodel_cli.core.sources import FileSource, GroupedSource, LabelledSource, SourceWrapper
from bigmodel_cli.core.splits import name_hash
from bigmodel_cli.core.types import Batch, Source


class Subset(SourceWrapper):
    """The samples of `source` at `indices` (n,) int64; ``index`` in a batch is relative to this subset."""

    keeps_order = False

    def __init__(self, source: Source, indices: Tensor) -> None:
        self.indices = indices
        super().__init__(source)
        if isinstance(source, FileSource):
            self.file = functools.partial(self._file, source)

    def select(self, values: Tensor) -> Tensor:
        return values[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def _file(self, source: FileSource, index: int) -> bytes:
        return source.file(int(self.indices[index]))

    def gather(self, indices: Tensor) -> Batch:
        return {**self.source.gather(self.indices.index_select(0, indices)), "index": indices}

    def name(self, index: int) -> str:
        return self.source.name(int(self.indices[index]))


def carve(
    source: Source,
    val_fraction: float,
    seed: int,
    how: Literal["hash", "shuffle"] = "hash",
    classes: Sequence[str] = (),
) -> tuple[Subset, Subset]:
    """(train, val): about `val_fraction` of the samples of `source` go to val, at least one of each class.

    By "hash", the side of a sample depends on the seed and on its own group or name, so that it stays when others come
    or go, and equal groups are on one side. By "shuffle", as in runs of earlier versions, and for sources whose samples
    have no names but their places, it depends on all samples. `classes` are for messages.

    Raises:
        InputError: a class has too few samples, or groups, to be on both sides.
    """
    labels = source.labels if isinstance(source, LabelledSource) else torch.zeros(len(source), dtype=torch.int64)
    if labels.dim() != 1 or labels.is_floating_point():  # several classes a sample, or numbers
        labels = torch.zeros(len(source), dtype=torch.int64)
    if how == "hash" and isinstance(source, GroupedSource):
        in_val = _by_hash(source.groups, labels, val_fraction, seed, classes)
    else:
        in_val = _by_shuffle(labels, val_fraction, seed)
        if how == "hash":
            in_val = _on_both_sides(in_val, torch.arange(len(labels)), in_val.float(), labels, classes)
    return Subset(source, (~in_val).nonzero().flatten()), Subset(source, in_val.nonzero().flatten())


MOST_ALONE = 10
"""With more classes of one sample, all numbers, the labels are likely to be numbers to predict."""


def _is_number(name: str) -> bool:
    return re.fullmatch(r"-?\d+([.,]\d+)?", name) is not None


Row = TypeVar("Row")


def divide(
    rows: Sequence[Row],
    groups: Sequence[str],
    val_fraction: float,
    seed: int,
    end: float | None,
    where: object,
    notes: list[str],
) -> dict[str, list[Row]]:
    """Rows that are cut into samples later, as train and val: each by the hash of its group, as :func:`carve` does.

    With `end`, val is that share at the end, as in runs of earlier versions. `where` is for messages. If all rows are
    in one group, which is noted, their places decide.

    Raises:
        InputError: there are fewer than two rows.
    """
    if len(rows) < 2:
        raise InputError(f"{where}: {len(rows)} rows", "expected at least 2, for train and val")
    if end is not None:
        cut = max(1, min(len(rows) - 1, round(len(rows) * (1 - end))))
        return {"train": list(rows[:cut]), "val": list(rows[cut:])}
    if len(set(groups)) == 1:
        notes.append("all rows are alike, so that what is in val is in train too")
        groups = [str(place) for place in range(len(rows))]
    hashes = torch.tensor([name_hash(group) for group in groups])
    labels = torch.zeros(len(rows), dtype=torch.int64)
    in_val = _by_hash(hashes, labels, val_fraction, seed, [str(where)]).tolist()
    parts: dict[str, list[Row]] = {"train": [], "val": []}
    for row, val in zip(rows, in_val, strict=True):
        parts["val" if val else "train"].append(row)
    return parts


def _by_shuffle(labels: Tensor, val_fraction: float, seed: int) -> Tensor:
    """(N,) bool: `val_fraction` of each class."""
    generator = torch.Generator().manual_seed(seed)
    in_val = torch.zeros(len(labels), dtype=torch.bool)
    for members in _members(labels):
        count = round(len(members) * val_fraction)
        in_val[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    if not in_val.any():  # even a tiny data set needs a sample to select the best epoch
        in_val[torch.randint(len(labels), (1,), generator=generator)] = True
    return in_val


def _members(values: Tensor) -> tuple[Tensor, ...]:
    """The places of each of the distinct `values` (N,), in their order.

    One sort for all: to look for each would take a pass over the samples for every class.
    """
    _, number, counts = values.unique(return_inverse=True, return_counts=True)
    return number.argsort(stable=True).split(counts.tolist())


def _by_hash(groups: Tensor, labels: Tensor, val_fraction: float, seed: int, classes: Sequence[str]) -> Tensor:
    """(N,) bool, by the hash of each sample's group."""
    chance = torch.from_numpy(_uniform(groups.numpy(), seed))
    return _on_both_sides(chance < val_fraction, groups, chance, labels, classes)


def _uniform(groups: numpy.ndarray[Any, Any], seed: int) -> numpy.ndarray[Any, Any]:
    """(N,) float64 in [0, 1), by the finaliser of MurmurHash3 over 64 bits, keyed by the seed."""
    x = groups.astype(numpy.uint64)
    with numpy.errstate(over="ignore"):
        x ^= numpy.uint64((seed + 1) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF)
        for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
            x = (x ^ (x >> numpy.uint64(33))) * numpy.uint64(factor)
        x ^= x >> numpy.uint64(33)
    return (x >> numpy.uint64(11)).astype(numpy.float64) / 2.0**53


def _on_both_sides(in_val: Tensor, groups: Tensor, chance: Tensor, labels: Tensor, classes: Sequence[str]) -> Tensor:
    """`in_val`, with whole groups moved until every class is on both sides.

    A class without val samples gives those of its group with the lowest `chance`: of a growing data set no sample
    moves from train to val.

    Raises:
        InputError: a class has too few groups.
    """
    in_val = in_val.clone()
    count = int(labels.max()) + 1 if len(labels) else 0
    total = torch.bincount(labels, minlength=count)
    of_label = dict(zip(labels.unique().tolist(), _members(labels), strict=True))
    by_group = groups.argsort(stable=True)  # a tensor for each of a million groups would take more than their texts
    sorted_groups = groups[by_group]
    for to_val in (True, False):
        there = torch.bincount(labels[in_val if to_val else ~in_val], minlength=count)
        for label in ((there == 0) & (total > 0)).nonzero().flatten().tolist():
            members = of_label[label]
            order = chance[members].argsort(stable=True, descending=not to_val)
            group = groups[members[order[0]]]
            first, end = (torch.searchsorted(sorted_groups, group, right=right) for right in (False, True))
            in_val[by_group[int(first) : int(end)]] = to_val
    for side in (in_val, ~in_val):
        gone = ((torch.bincount(labels[side], minlength=count) == 0) & (total > 0)).nonzero().flatten().tolist()
        if gone:
            names = [classes[i] if i < len(classes) else str(i) for i in gone]
            what = f"{shorten(names)}: too few samples to have some in train and some in val"
            expected = "expected two or more of each class that are in different groups"
            hint = "add some, leave the class out, or give a val split of your own"
            numbers = len(names) > MOST_ALONE and all(map(_is_number, names))
            raise InputError(what, expected, "--task regression, if they are numbers to predict" if numbers else hint)
    return in_val
