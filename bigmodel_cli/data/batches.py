"""Data to batches: which samples, in which order, gathered a batch at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bigmodel_cli.core.sources import OrderedSource, VariableLengthSource
from bigmodel_cli.core.types import Batch, Source
from bigmodel_cli.data.balance import Repeated, balanced_order
from bigmodel_cli.data.thread_map import single_core_pool

QUICK = 1e-3  # seconds: what takes less is done by the time a thread has been told of it
SLACK = 1e-2  # seconds: by so much those that are quick else may be late together, before a thread is started for all
POOL = 50  # steps: enough for equal lengths, too few for an epoch to be in order


@dataclass(frozen=True)
class Batches:
    """The train split as optimizer steps. The order depends on (seed, epoch) alone.

    An epoch is cut into ceil(n / batch_size) *nearly equal* steps, so every sample is
    seen exactly once an epoch and no step is tiny (a last step of one image would
    break BatchNorm and weigh that image like a whole batch).

    With `even`, the labels (n,) of the split, an epoch is as long but gives each class as many
    places: see :func:`bigmodel_cli.data.balance.balanced_order`.
    """

    source: Source
    batch_size: int
    seed: int
    even: Tensor | None = None
    shard: int = 0
    shards: int = 1
    """Of each step this process takes the part `shard` of `shards` nearly equal ones: the step is the same in all."""

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.source) // self.batch_size)

    @property
    def drawn(self) -> Source:
        """What the indices of :meth:`order` mean: `source`, or where classes are evened out its samples repeated."""
        return self.source if self.even is None else Repeated(self.source)

    def order(self, epoch: int) -> Tensor:
        """(n,) int64: the sample order of `epoch`; where lengths vary, those of a step are alike."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        if self.even is not None:
            return balanced_order(self.even, generator)
        if isinstance(self.source, OrderedSource):
            return self.source.order(generator, self.steps_per_epoch)
        order = torch.randperm(len(self.source), generator=generator)
        if isinstance(self.source, VariableLengthSource):
            return self._alike(order, self.source.lengths, generator)
        return order

    def _alike(self, order: Tensor, lengths: Tensor, generator: torch.Generator) -> Tensor:
        """`order` sorted by length within pools of POOL steps, so that little of a batch is fill; the steps mixed."""
        pools = order.split(POOL * self.batch_size)
        steps = torch.cat([pool[lengths[pool].argsort(stable=True)] for pool in pools])
        parts = steps.tensor_split(self.steps_per_epoch)
        longer = len(steps) % self.steps_per_epoch  # these come first in a split, and must again
        mixed = [int(i) for i in torch.randperm(len(parts), generator=generator)]
        return torch.cat([parts[i] for i in sorted(mixed, key=lambda i: i >= longer)])

    def size(self, step: int) -> int:
        """Samples in step `step` of an epoch, over all shards."""
        whole, more = divmod(len(self.source), self.steps_per_epoch)
        return whole + (step < more)

    def steps(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The raw batches of `epoch` from step `start` on; the next is gathered while this one trains."""
        parts = self.order(epoch).tensor_split(self.steps_per_epoch)[start:]
        return gathered(self.drawn, [part.tensor_split(self.shards)[self.shard] for part in parts])


def in_order(source: Source, batch_size: int) -> Iterator[Batch]:
    """The whole split once, in its own order: for evaluation."""
    return gathered(source, torch.arange(len(source)).split(batch_size))


def shares(samples: int, batch_size: int, shard: int, shards: int) -> list[Tensor]:
    """One shard's batches of a split in its own order: each sample in one shard, as many batches in all, some empty."""
    return [part.tensor_split(shards)[shard] for part in torch.arange(samples).split(batch_size * shards)]


def gathered(source: Source, parts: tuple[Tensor, ...] | list[Tensor]) -> Iterator[Batch]:
    """Gather `parts` in turn: here while that is quick, else in a thread, one batch ahead.

    Decoders release the GIL, so a thread hides them. It would cost more than it hides where the samples lie in memory.
    """
    remaining = iter(parts)
    left = SLACK
    for part in remaining:
        clock = time.perf_counter()
        batch = source.gather(part)
        left = min(left + QUICK - (time.perf_counter() - clock), SLACK)
        yield batch
        if left < 0:
            break
    else:
        return
    with single_core_pool(1, "gather") as pool:
        pending = None
        for part in remaining:
            coming = pool.submit(source.gather, part)
            if pending is not None:
                yield pending.result()
            pending = coming
        if pending is not None:
            yield pending.result()


def micro_batches(batch: Batch, pieces: int) -> Iterator[tuple[Batch, bool]]:
    """`batch` cut into at most `pieces` nearly equal micro-batches, and whether each is the last."""
    size = len(next(iter(batch.values())))
    pieces = min(pieces, size)
    if pieces == 1:
        yield batch, True
        return
    cut = {k: v.tensor_split(pieces) for k, v in batch.items()}
    for i in range(pieces):
        yield {k: v[i] for k, v in cut.items()}, i == pieces - 1
