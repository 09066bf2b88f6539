"""How a run is spread over processes: not at all, by DDP, or by FSDP2. The loop sees a Parallel alone."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bigmodel_cli.core.errors import InputError, MachineError
from bigmodel_cli.core.recipe import Recipe
from bigmodel_cli.core.registry import methods
from bigmodel_cli.engine.device.placement import Placement
from bigmodel_cli.engine.distributed.process_group import Group

BEHIND, LEAST_BEHIND = 1.3, 0.1  # of the median rank's time, and in seconds: what makes a straggler
SHARE_OF_MEMORY = 0.6  # for the model and its optimizer; the rest is for activations


class Parallel:
    """One run on one process; the base of the others. `forward` is what training calls."""

    strategy = "none"
    cuts = False
    """Whether tensors are cut over the ranks."""

    def __init__(self, group: Group | None = None) -> None:
        self.group = group or Group()

    def wrap(self, model: nn.Module) -> nn.Module:
        """`model` as training calls it."""
        return model

    def pieces(self, wanted: int, size: int) -> int:
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
        return int(self.group.total(count))

    def whole(self, value: Any, keep: bool = True) -> Any:
        """`value` with each tensor that is cut over the ranks as one; every rank calls it, one with `keep` has it."""
        return value

    def own_rows(self, value: Tensor) -> tuple[Tensor, int] | None:
        """This rank's rows of a tensor that is cut over the ranks, and the first one's place; None for a whole one."""
        return None

    def cut(self, values: Mapping[str, Any], like: Mapping[str, Any]) -> Mapping[str, Any]:
        """Whole tensors cut as those of the same name in `like` are."""
        return values

    def cut_optimizer(self, state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> Mapping[str, Any]:
        """A whole optimizer's state as the ranks hold it."""
        return state

    def straggler(self, seconds: float) -> str:
        """The rank that keeps the others waiting, where one's own part of the work (`seconds`) takes far longer."""
        each = self.group.each(seconds)
        usual, slowest = sorted(each)[(len(each) - 1) // 2], max(each)
        if slowest < BEHIND * usual or slowest - usual < LEAST_BEHIND:
            return ""
        return f"rank {each.index(slowest)} takes {slowest / max(usual, 1e-9):.1f} times as long"

    def average_buffers(self, run: Any) -> None:
        """Make what BatchNorm counted on each rank the mean over ranks."""

    @property
    def averaged(self) -> int:
        """Over how many parts gradients are averaged, where they should be summed."""
        return self.group.shards

    @property
    def in_parts(self) -> bool:
        """Whether each rank's own part of a checkpoint is rows of its tensors, which it can write."""
        return False


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


def parallel_for(group: Group, recipe: Recipe, placement: Placement, model: nn.Module, unused: bool) -> Parallel:
    """The strategy that the recipe's ``parallel`` section names, or by `auto` that fits the memory.

    Raises:
        InputError: it does not go with the rest of the recipe.
    """
    section = recipe.parallel
    if group.world == 1:
        return Parallel(group)
    chosen = section.strategy
    if chosen == "auto":
        chosen = group.share("ddp" if needs(model) < SHARE_OF_MEMORY * placement.memory_here(group.ranks) else "fsdp")
    if chosen == "ddp":
        return DataParallel(group, unused=unused or section.unused)
    from bigmodel_cli.engine.distributed.fsdp import FullyShard

    if reason := _needs_whole(recipe, unused):
        raise InputError(f"parallel.strategy {chosen} with {reason}", "expected ddp", "--set parallel.strategy=ddp")
    if group.width == 1:
        return FullyShard(group, placement, offload=section.offload)
    from bigmodel_cli.engine.distributed.tensor_parallel import FullyShardTensorParallel, TensorParallel, plan_for

    plan = plan_for(recipe, model, group.width)
    if group.shards == 1:
        return TensorParallel(group, placement, plan)
    return FullyShardTensorParallel(group, placement, plan, offload=section.offload)


def _needs_whole(recipe: Recipe, stages: bool) -> str:
    """What in `recipe` works on whole tensors, of a model that is the same throughout; "" where nothing does."""
    method = recipe.start.method
    found = {
        "muon": recipe.optimizer.name == "muon",
        "a method in stages": stages,
        f"method {method}": methods.get(method).meta.get("holds_weights", False),
        "sync_batchnorm": recipe.parallel.sync_batchnorm,
    }
    return next((what for what, true in found.items() if true), "")


def with_synced_batchnorm(model: nn.Module, group: Group, placement: Placement) -> nn.Module:
    """`model` with each BatchNorm over the batch of all ranks (Ioffe and Szegedy 2015, as if on one device).

    Raises:
        InputError: the device is no GPU, for which alone torch has it.
    """
    if placement.device.type != "cuda":
        raise InputError(f"parallel.sync_batchnorm on {placement.device.type}", "expected GPUs")
    return nn.SyncBatchNorm.convert_sync_batchnorm(model) if group.world > 1 else model  # type: ignore[no-any-return]


def needs(model: nn.Module) -> int:
    """Bytes of weights, gradients and the two moments of Adam, without activations."""
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return 3 * trained + sum(p.numel() * p.element_size() for p in model.parameters())
