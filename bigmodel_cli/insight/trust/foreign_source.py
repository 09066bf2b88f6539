"""Samples of other data, whose labels mean nothing to the model."""

from __future__ import annotations

import torch
from torch import Tensor

from bigmodel_cli.core.types import Batch, Source


class Unlabelled:
    """The samples of `source`, all with label 0."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def gather(self, indices: Tensor) -> Batch:
        return {**self.source.gather(indices), "label": torch.zeros(len(indices), dtype=torch.int64)}

    def name(self, index: int) -> str:
        return self.source.name(index)
