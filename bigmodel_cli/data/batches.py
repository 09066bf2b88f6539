"""Turns a split into batches: the sample order of each epoch, and prefetching."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bigmodel_cli.core.sources import OrderedSource, RowSource, VariableLengthSource
from bigmodel_cli.core.types import Batch, Source
from bigmodel_cli.data.balance import CyclicSource, balanced_order
from bigmodel_cli.data.thread_map import single_core_pool

QUICK = 1e-3  # seconds: handing a batch to a thread costs more than gathering one faster than this
SLACK = 1e-2  # seconds: total excess over QUICK before a prefetching thread is started
ROWS_AT_ONCE = 1 << 20  # bytes: they stay in the cache until they are used
POOL = 50  # steps: enough to group similar lengths, few enough to keep an epoch shuffled


@dataclass(frozen=True)
class Batches:
    """The train split as optimizer steps. The order depends only on (seed, epoch).

    An epoch is cut into ceil(n / batch_size) *nearly equal* steps, so every sample is
    seen exactly once per epoch and no step is tiny: a last step of one image would
    break BatchNorm and weight that image like a whole batch. With batches of two, an odd
    sample joins a batch of three.

    With `balance_labels`, the labels (n,) of the split, an epoch has the same length but samples every class
    equally often: see :func:`bigmodel_cli.data.balance.balanced_order`.
    """

    source: Source
    batch_size: int
    seed: int
    balance_labels: Tensor | None = None
    shard: int = 0
    shards: int = 1
    """Each step is split into `shards` nearly equal parts; this process takes the part `shard`."""

    @property
    def steps_per_epoch(self) -> int:
        steps = -(-len(self.source) // self.batch_size)
        lone = self.batch_size > 1 and steps > 1 and len(self.source) // steps == 1
        return steps - 1 if lone else steps

    @property
    def indexed_source(self) -> Source:
        """The source that :meth:`order` indexes: `source`, repeated cyclically if classes are balanced."""
        return self.source if self.balance_labels is None else CyclicSource(self.source)

    def order(self, epoch: int) -> Tensor:
        """(n,) int64: the sample order of `epoch`. Samples of varying lengths are grouped by length."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        if self.balance_labels is not None:
            return balanced_order(self.balance_labels, generator)
        if isinstance(self.source, OrderedSource):
            return self.source.order(generator, self.steps_per_epoch)
        order = torch.randperm(len(self.source), generator=generator)
        if isinstance(self.source, VariableLengthSource):
            return self._group_by_length(order, self.source.lengths, generator)
        return order

    def _group_by_length(self, order: Tensor, lengths: Tensor, generator: torch.Generator) -> Tensor:
        """Sort `order` by length within pools of POOL steps, which reduces padding, then shuffle the steps."""
        pools = order.split(POOL * self.batch_size)
        steps = torch.cat([pool[lengths[pool].argsort(stable=True)] for pool in pools])
        parts = steps.tensor_split(self.steps_per_epoch)
        longer = len(steps) % self.steps_per_epoch  # tensor_split puts the longer steps first, so they must stay first
        shuffled = [int(i) for i in torch.randperm(len(parts), generator=generator)]
        return torch.cat([parts[i] for i in sorted(shuffled, key=lambda i: i >= longer)])

    def size(self, step: int) -> int:
        """Samples in step `step` of an epoch, over all shards."""
        whole, more = divmod(len(self.source), self.steps_per_epoch)
        return whole + (step < more)

    def steps(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The raw batches of `epoch` from step `start` on, prefetched while the previous one trains."""
        parts = self.order(epoch).tensor_split(self.steps_per_epoch)[start:]
        return gather_ahead(self.indexed_source, [part.tensor_split(self.shards)[self.shard] for part in parts])


def in_order(source: Source, batch_size: int, order: Tensor | None = None) -> Iterator[Batch]:
    """The whole split once, in its own order, or in `order` (n,): for evaluation."""
    return gather_ahead(source, (torch.arange(len(source)) if order is None else order).split(batch_size))


def longest_first(source: Source) -> Tensor | None:
    """(n,) int64: an order in which a batch holds samples of similar length; None where all have one length."""
    return source.lengths.argsort(descending=True, stable=True) if isinstance(source, VariableLengthSource) else None


def shard_batches(samples: int, batch_size: int, shard: int, shards: int) -> list[Tensor]:
    """One shard's batches of a split in order. All shards have the same number of batches, some possibly empty."""
    return [part.tensor_split(shards)[shard] for part in torch.arange(samples).split(batch_size * shards)]


def gather_ahead(source: Source, parts: Iterable[Tensor]) -> Iterator[Batch]:
    """Gather `parts` in turn: in this thread while that is quick, else in another thread, one batch ahead.

    Decoders release the GIL, so a thread hides their time. For samples in memory, a thread costs more than it saves.
    Rows of numbers are gathered for many batches at once, which are views of them.
    """
    if isinstance(source, RowSource):
        yield from _gather_rows(source, list(parts))
        return
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


def _gather_rows(source: RowSource, parts: list[Tensor]) -> Iterator[Batch]:
    longest = max((len(part) for part in parts), default=1)
    together = max(1, ROWS_AT_ONCE // (source.sample_bytes * max(longest, 1)))
    for at in range(0, len(parts), together):
        group = parts[at : at + together]
        sizes = [len(part) for part in group]
        columns = {name: values.split(sizes) for name, values in source.gather(torch.cat(group)).items()}
        for i in range(len(group)):
            yield {name: split[i] for name, split in columns.items()}


def micro_batches(batch: Batch, count: int) -> Iterator[tuple[Batch, bool]]:
    """Split `batch` into at most `count` nearly equal micro-batches; yields each, and whether it is the last.

    A batch of no samples has none.
    """
    size = len(next(iter(batch.values())))
    count = min(count, size)
    if size == 0:
        return
    if count == 1:
        yield batch, True
        return
    parts = {k: v.tensor_split(count) for k, v in batch.items()}
    for i in range(count):
        yield {k: v[i] for k, v in parts.items()}, i == count - 1
