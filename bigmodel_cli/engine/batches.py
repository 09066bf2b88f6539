"""Data to batches: which samples, in which order, gathered a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from bigmodel_cli.core.types import Batch, Source


@dataclass(frozen=True)
class Batches:
    """The train split as optimizer steps. The order depends on (seed, epoch) alone.

    An epoch is cut into ceil(n / batch_size) *nearly equal* steps, so every sample is
    seen exactly once an epoch and no step is tiny (a last step of one picture would
    break BatchNorm and weigh that picture like a whole batch).
    """

    source: Source
    batch_size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.source) // self.batch_size)

    def order(self, epoch: int) -> Tensor:
        """(n,) int64: the sample order of `epoch`."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return torch.randperm(len(self.source), generator=generator)

    def steps(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The raw batches of `epoch` from step `start` on; the next is gathered while this one trains."""
        parts = self.order(epoch).tensor_split(self.steps_per_epoch)[start:]
        return _ahead(self.source, parts)


def in_order(source: Source, batch_size: int) -> Iterator[Batch]:
    """The whole split once, in its own order: for evaluation."""
    return _ahead(source, torch.arange(len(source)).split(batch_size))


def _ahead(source: Source, parts: tuple[Tensor, ...] | list[Tensor]) -> Iterator[Batch]:
    """Gather in a thread, one batch ahead (torch's indexing and picture decoders release the GIL)."""
    with ThreadPoolExecutor(1, thread_name_prefix="gather") as pool:
        pending = None
        for part in parts:
            coming = pool.submit(source.gather, part)
            if pending is not None:
                yield pending.result()
            pending = coming
        if pending is not None:
            yield pending.result()


def micro_batches(batch: Batch, pieces: int) -> Iterator[Batch]:
    """`batch` cut into at most `pieces` nearly equal micro-batches."""
    size = len(next(iter(batch.values())))
    pieces = min(pieces, size)
    if pieces == 1:
        yield batch
        return
    cut = {k: v.tensor_split(pieces) for k, v in batch.items()}
    for i in range(pieces):
        yield {k: v[i] for k, v in cut.items()}
