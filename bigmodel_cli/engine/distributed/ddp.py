"""Distributed data parallelism: each rank holds the whole model (Li et al. 2020)."""

from __future__ import annotations

import contextlib
import inspect
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bigmodel_cli.core.errors import InputError, MachineError
from bigmodel_cli.engine.distributed.base import Parallel
from bigmodel_cli.engine.distributed.process_group import Group


class DataParallel(Parallel):
    """Every rank holds the whole model and takes its share of each batch (Li et al. 2020, PyTorch Distributed).

    The first step at a size sends nothing until all ranks are through its passes: a rank that
    runs out of memory in them leaves none of the others waiting.
    """

    strategy = "ddp"

    def __init__(self, group: Group, *, unused: bool) -> None:
        super().__init__(group)
        self.unused, self.careful = unused, True
        self.ddp: nn.parallel.DistributedDataParallel | None = None

    def wrap(self, model: nn.Module) -> nn.Module:
        known = inspect.signature(nn.parallel.DistributedDataParallel).parameters
        quiet = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # its old name
        options: dict[str, Any] = {quiet: False}  # see average_buffers: no broadcast a step
        self.ddp = nn.parallel.DistributedDataParallel(
            model, gradient_as_bucket_view=True, find_unused_parameters=self.unused, **options
        )
        return self.ddp

    def syncing(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        assert self.ddp is not None
        return self.ddp.no_sync() if self.careful or not last else contextlib.nullcontext()

    def out_of_memory(self, here: bool) -> bool:
        if not self.careful:
            if here:
                what = f"out of memory in mid-run on rank {self.group.rank}"
                raise MachineError(what, hint="--resume with --set train.accumulate=2, or a smaller --batch-size")
            return False
        if self.group.any(here):
            return True
        assert self.ddp is not None
        trained = [(n, p) for n, p in self.ddp.module.named_parameters() if p.requires_grad]
        without = [n for n, p in trained if p.grad is None]
        if without and not self.unused:
            what = f"{len(without)} parameters had no part in the loss, such as {without[0]}"
            raise InputError(what, "expected all to", "--set parallel.unused=true")
        for _, p in trained:
            grad = torch.zeros_like(p) if p.grad is None else p.grad
            dist.all_reduce(grad.div_(self.group.world))
            p.grad = grad
        self.careful = False
        return False

    def summed(self, value: Tensor) -> Tensor:
        dist.all_reduce(value)
        return value

    def average_buffers(self, run: Any) -> None:
        for name, buffer in (*run.model.named_buffers(), *(run.ema.module.named_buffers() if run.ema else ())):
            # Frozen ones are alike already, and x / 3 + x / 3 + x / 3 is not always x.
            if buffer.is_floating_point() and name not in run.frozen.tensors:
                dist.all_reduce(buffer.div_(self.group.world))
