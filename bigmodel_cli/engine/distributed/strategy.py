"""How a run is spread over processes: not at all, by DDP, or by FSDP2. The loop sees a Parallel alone."""

from __future__ import annotations

from torch import nn

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.recipe import Recipe
from bigmodel_cli.core.registry import methods, optimizers
from bigmodel_cli.engine.device.placement import Placement
from bigmodel_cli.engine.distributed.base import Parallel
from bigmodel_cli.engine.distributed.ddp import DataParallel
from bigmodel_cli.engine.distributed.process_group import Group

SHARE_OF_MEMORY = 0.6  # for the model and its optimizer; the rest is for activations


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
        chosen = group.broadcast(
            "ddp" if needs(model) < SHARE_OF_MEMORY * placement.memory_here(group.ranks) else "fsdp"
        )
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
    method, optimizer = recipe.start.method, recipe.optimizer.name
    found = {
        optimizer: optimizers.get(optimizer).meta.get("whole_matrices", False),
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
