"""Distributed data parallelism: each rank holds the full model (Li et al. 2020)."""

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
    """Every rank holds the full model and computes its part of each batch (Li et al. 2020, PyTorch Distributed).

    The first step communicates only after all ranks have finished its passes: if one rank runs out of memory,
    the others do not hang.
    """

    strategy = "ddp"

    def __init__(self, group: Group, *, find_unused: bool) -> None:
        super().__init__(group)
        self.find_unused, self.first_step = find_unused, True
        self.ddp: nn.parallel.DistributedDataParallel | None = None

    def wrap(self, model: nn.Module) -> nn.Module:
        parameters = inspect.signature(nn.parallel.DistributedDataParallel).parameters
        buffer_option = (
            "forward_sync_buffers" if "forward_sync_buffers" in parameters else "broadcast_buffers"
        )  # its old name
        options: dict[str, Any] = {buffer_option: False}  # average_buffers replaces a broadcast in every step
        self.ddp = nn.parallel.DistributedDataParallel(
            model, gradient_as_bucket_view=True, find_unused_parameters=self.find_unused, **options
        )
        return self.ddp

    def syncing(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        assert self.ddp is not None
        return self.ddp.no_sync() if self.first_step or not last else contextlib.nullcontext()

    def out_of_memory(self, local: bool) -> bool:
        if not self.first_step:
            if local:
                what = f"out of memory after the first step on rank {self.group.rank}"
                raise MachineError(what, hint="--resume with --set train.accumulate=2, or a smaller --batch-size")
            return False
        if self.group.any(local):
            return True
        assert self.ddp is not None
        trained = [(n, p) for n, p in self.ddp.module.named_parameters() if p.requires_grad]
        without_grad = [n for n, p in trained if p.grad is None]
        if without_grad and not self.find_unused:
            what = f"{len(without_grad)} parameters got no gradient, such as {without_grad[0]}"
            raise InputError(what, "expected all parameters to contribute to the loss", "--set parallel.unused=true")
        for _, p in trained:
            grad = torch.zeros_like(p) if p.grad is None else p.grad
            dist.all_reduce(grad.div_(self.group.world))
            p.grad = grad
        self.first_step = False
        return False

    def all_reduce(self, value: Tensor) -> Tensor:
        dist.all_reduce(value)
        return value

    def average_buffers(self, run: Any) -> None:
        for name, buffer in (*run.model.named_buffers(), *(run.ema.module.named_buffers() if run.ema else ())):
            # Frozen buffers are equal already, and x / 3 + x / 3 + x / 3 is not always x.
            if buffer.is_floating_point() and name not in run.frozen.tensors:
                dist.all_reduce(buffer.div_(self.group.world))
