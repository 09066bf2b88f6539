"""The interface of every parallel strategy, and the strategy of one process. The loop knows nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_cli.engine.distributed.process_group import Group

STRAGGLER_RATIO = 1.3  # a straggler takes this many times as long as the median rank,
STRAGGLER_SECONDS = 0.1  # and so many seconds longer


class Parallel:
    """Training in one process, and the base class of the other strategies."""

    strategy = "none"
    shards_tensors = False
    """Whether parameters are sharded over the ranks."""

    def __init__(self, group: Group | None = None) -> None:
        self.group = group or Group()

    def wrap(self, model: nn.Module) -> nn.Module:
        """The module to call in training instead of `model`."""
        return model

    def num_micro_batches(self, requested: int, size: int) -> int:
        """Micro-batches in a step of `size` samples over all ranks: the same number on every rank."""
        return min(requested, size // self.group.data_parallel_size)

    def syncing(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """A context for the passes of a micro-batch: only the last one of a step synchronizes gradients."""
        return contextlib.nullcontext()

    def out_of_memory(self, local: bool) -> bool:
        """Whether any rank ran out of memory in the passes of a step; `local` says so for this rank."""
        return local

    def all_reduce(self, value: Tensor) -> Tensor:
        """The sum of `value` over the ranks, on its device."""
        return value

    def __str__(self) -> str:
        return f"{self.group.world} processes, {self.strategy}" if self.group.world > 1 else "one process"

    def global_count(self, count: int) -> int:
        """The sum of `count` over the ranks, each of which counts its part of the batch."""
        return int(self.group.sum(count))

    def gather_full(self, value: Any, keep: bool = True) -> Any:
        """`value` with sharded tensors gathered. Every rank calls it; only ranks with `keep` get the result."""
        return value

    def local_rows(self, value: Tensor) -> tuple[Tensor, int] | None:
        """This rank's rows of a sharded tensor, and the index of the first; None for an unsharded tensor."""
        return None

    def shard_state(self, values: Mapping[str, Any], like: Mapping[str, Any]) -> Mapping[str, Any]:
        """Full tensors sharded like those of the same name in `like`."""
        return values

    def shard_optimizer_state(self, state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> Mapping[str, Any]:
        """A full optimizer state, sharded as the ranks hold it."""
        return state

    def straggler(self, seconds: float) -> str:
        """A line that names the rank the others wait for, "" where none is slow. `seconds`: this rank's own work."""
        seconds_by_rank = self.group.all_gather(seconds)
        median, slowest = sorted(seconds_by_rank)[(len(seconds_by_rank) - 1) // 2], max(seconds_by_rank)
        if slowest < STRAGGLER_RATIO * median or slowest - median < STRAGGLER_SECONDS:
            return ""
        return f"rank {seconds_by_rank.index(slowest)} takes {slowest / max(median, 1e-9):.1f} times as long"

    def average_buffers(self, run: Any) -> None:
        """Average BatchNorm's running statistics over the ranks."""

    @property
    def gradient_divisor(self) -> int:
        """By how much the strategy divides the sum of gradients: the loop multiplies it back."""
        return self.group.data_parallel_size

    @property
    def saves_shards(self) -> bool:
        """Whether each rank can write its own shard of a checkpoint: rows of every tensor."""
        return False
