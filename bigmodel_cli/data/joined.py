"""Two splits of the same data as one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bigmodel_cli.core.sources import SourceWrapper
from bigmodel_cli.core.types import Batch, Source


class Joined(SourceWrapper):
    """The samples of `source`, then those of `other`, with the same tensors; shorter rows are padded with `fill`."""

    keeps_lengths = keeps_order = False

    def __init__(self, source: Source, other: Source, fill: int = 0) -> None:
        self.source, self.other, self.fill = source, other, fill

    def __len__(self) -> int:
        return len(self.source) + len(self.other)

    def gather(self, indices: Tensor) -> Batch:
        first = len(self.source)
        from_first = indices < first
        chosen = ((self.source, indices[from_first]), (self.other, indices[~from_first] - first))
        parts = [source.gather(own) for source, own in chosen if len(own)]
        back = torch.cat((from_first.nonzero(), (~from_first).nonzero())).flatten().argsort()
        joined = {n: torch.cat(_same_width([part[n] for part in parts], self.fill))[back] for n in parts[0]}
        return {**joined, "index": indices}

    def name(self, index: int) -> str:
        first = len(self.source)
        return self.source.name(index) if index < first else self.other.name(index - first)


def _same_width(tensors: list[Tensor], fill: int) -> list[Tensor]:
    """Tensors (B,) or (B,T,...), those of rows (B,T) as wide as the widest."""
    if tensors[0].dim() != 2:
        return tensors
    width = max(t.shape[1] for t in tensors)
    return [F.pad(t, (0, width - t.shape[1]), value=fill) for t in tensors]
