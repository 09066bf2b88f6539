"""Subsets of a split, and the seeded split of train into train and validation."""

from __future__ import annotations

import torch
from torch import Tensor

from bigmodel_cli.core.sources import LabelledSource, SourceWrapper
from bigmodel_cli.core.types import Batch, Source


class Subset(SourceWrapper):
    """The samples of `source` at `indices` (n,) int64; ``index`` in a batch is relative to this subset."""

    keeps_order = False

    def __init__(self, source: Source, indices: Tensor) -> None:
        self.indices = indices
        super().__init__(source)

    def select(self, values: Tensor) -> Tensor:
        return values[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def gather(self, indices: Tensor) -> Batch:
        return {**self.source.gather(self.indices.index_select(0, indices)), "index": indices}

    def name(self, index: int) -> str:
        return self.source.name(int(self.indices[index]))


def carve(source: Source, val_fraction: float, seed: int) -> tuple[Subset, Subset]:
    """(train, val): `val_fraction` of each class goes to val if the source is labelled, else of all samples.

    Every sample is in exactly one of the two; which one depends only on the seed.
    """
    labels = source.labels if isinstance(source, LabelledSource) else torch.zeros(len(source), dtype=torch.int64)
    generator = torch.Generator().manual_seed(seed)
    in_val = torch.zeros(len(source), dtype=torch.bool)
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        count = round(len(members) * val_fraction)
        in_val[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    if not in_val.any():  # even a tiny data set needs a sample to select the best epoch
        in_val[torch.randint(len(source), (1,), generator=generator)] = True
    return Subset(source, (~in_val).nonzero().flatten()), Subset(source, in_val.nonzero().flatten())
