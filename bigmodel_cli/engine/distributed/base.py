"""One process, and what every strategy shares with it: the loop sees a Parallel alone."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_cli.engine.distributed.process_group import Group

BEHIND = 1.3  # of the median rank's time: what makes a straggler


LEAST_BEHIND = 0.1  # seconds more than the median rank


class Parallel:
    """One run on one process; the base of the others. `forward` is what training calls."""

    strategy = "none"
    shards_tensors = False
    """Whether tensors are cut over the ranks."""

    def __init__(self, group: Group | None = None) -> None:
        self.group = group or Group()

    def wrap(self, model: nn.Module) -> nn.Module:
        """`model` as training calls it."""
        return model

    def num_micro_batches(self, wanted: int, size: int) -> int:
        """Micro-batches in a step of `size` samples over all ranks: as many on every rank."""
        return min(wanted, size // self.group.shards)

    def syncing(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Around the passes of a micro-batch: gradients travel with the last of a step alone."""
        return contextlib.nullcontext()

    def out_of_memory(self, here: bool) -> bool:
        """Whether the passes of a step ran out of memory, `here` or on any rank."""
        return here

    def summed(self, value: Tensor) -> Tensor:
        """The sum of every rank's `value`, on its device."""
        return value

    def __str__(self) -> str:
        return f"{self.group.world} processes, {self.strategy}" if self.group.world > 1 else "one process"

    def total(self, count: int) -> int:
        """The sum of every rank's `count` of what its part of the batch holds."""
        return int(self.group.sum(count))

    def gather_full(self, value: Any, keep: bool = True) -> Any:
        """`value` with each tensor that is cut over the ranks as one; every rank calls it, one with `keep` has it."""
        return value

    def local_rows(self, value: Tensor) -> tuple[Tensor, int] | None:
        """This rank's rows of a tensor that is cut over the ranks, and the first one's place; None for a whole one."""
        return None

    def shard_state(self, values: Mapping[str, Any], like: Mapping[str, Any]) -> Mapping[str, Any]:
        """Whole tensors cut as those of the same name in `like` are."""
        return values

    def shard_optimizer_state(self, state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> Mapping[str, Any]:
        """A whole optimizer's state as the ranks hold it."""
        return state

    def straggler(self, seconds: float) -> str:
        """The rank that keeps the others waiting, where one's own part of the work (`seconds`) takes far longer."""
        each = self.group.all_gather(seconds)
        usual, slowest = sorted(each)[(len(each) - 1) // 2], max(each)
        if slowest < BEHIND * usual or slowest - usual < LEAST_BEHIND:
            return ""
        return f"rank {each.index(slowest)} takes {slowest / max(usual, 1e-9):.1f} times as long"

    def average_buffers(self, run: Any) -> None:
        """Make what BatchNorm counted on each rank the mean over ranks."""

    @property
    def gradient_divisor(self) -> int:
        """Over how many parts gradients are averaged, where they should be summed."""
        return self.group.shards

    @property
    def saves_shards(self) -> bool:
        """Whether each rank's own part of a checkpoint is rows of its tensors, which it can write."""
        return False
