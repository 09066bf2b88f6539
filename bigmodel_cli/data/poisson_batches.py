"""Batches by Poisson sampling: each step takes each sample with the same probability, independently of all others.

The accounting of DP-SGD (Abadi et al. 2016) assumes this sampling, and that nobody knows who was drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bigmodel_cli.core.sources import SourceWrapper
from bigmodel_cli.core.types import Batch
from bigmodel_cli.data.batches import Batches, gather_ahead


def generator(key: str, *what: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose numbers depend only on `key` and on `what` they are for."""
    digest = hashlib.sha256("/".join([key, *map(str, what)]).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


class MayBeEmpty(SourceWrapper):
    """A source that also gathers no samples at all: tensors of its own types with a first dimension of 0."""

    def gather(self, indices: Tensor) -> Batch:
        if len(indices):
            return self.source.gather(indices)
        return {name: values[:0] for name, values in self.source.gather(torch.tensor([0])).items()}


@dataclass(frozen=True)
class PoissonBatches(Batches):
    """Steps whose samples are drawn with `key`; a sample may be in several steps of an epoch, or in none.

    The size of a step varies; `size` is the expected one.
    """

    key: str = ""

    @property
    def rate(self) -> float:
        """The probability of a sample in a step."""
        return 1 / self.steps_per_epoch

    def drawn(self, epoch: int, step: int) -> Tensor:
        """The indices of a step, ascending."""
        chances = torch.rand(len(self.source), generator=generator(self.key, "samples", epoch, step))
        return (chances < self.rate).nonzero().flatten()

    def steps(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        return gather_ahead(
            MayBeEmpty(self.source), (self.drawn(epoch, step) for step in range(start, self.steps_per_epoch))
        )
