"""Chooses the parallel strategy of a run: one process, DDP, FSDP2, tensor parallelism, or both of these."""

from __future__ import annotations

from torch import nn

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.recipe import Recipe
from bigmodel_cli.core.registry import methods, optimizers
from bigmodel_cli.engine.device.placement import Placement
from bigmodel_cli.engine.distributed.base import Parallel
from bigmodel_cli.engine.distributed.ddp import DataParallel
from bigmodel_cli.engine.distributed.process_group import Group
from bigmodel_cli.models.layers.sharded_tables import ROOT

MODEL_MEMORY_FRACTION = 0.6  # for weights, gradients and optimizer state; the rest is for activations


def choose_strategy(group: Group, recipe: Recipe, placement: Placement, model: nn.Module, unused: bool) -> Parallel:
    """The strategy that the recipe's ``parallel`` section names; ``auto`` is DDP where it fits the memory, else FSDP.

    Raises:
        InputError: the strategy does not support the rest of the recipe.
    """
    section = recipe.parallel
    if group.world == 1:
        return Parallel(group)
    chosen = section.strategy
    if chosen == "auto":
        chosen = group.broadcast(
            "ddp"
            if training_bytes(model) < MODEL_MEMORY_FRACTION * placement.memory_per_process(group.ranks)
            else "fsdp"
        )
    if chosen == "ddp":
        return DataParallel(group, find_unused=unused or section.unused)
    from bigmodel_cli.engine.distributed.fsdp import FullyShard

    if reason := _full_tensor_requirement(recipe, unused):
        raise InputError(f"parallel.strategy {chosen} with {reason}", "expected ddp", "--set parallel.strategy=ddp")
    if group.tensor_parallel_size == 1:
        return FullyShard(group, placement, offload=section.offload)
    from bigmodel_cli.engine.distributed.tensor_parallel import FullyShardTensorParallel, TensorParallel, tensor_plan

    plan = tensor_plan(recipe, model, group.tensor_parallel_size)
    if group.data_parallel_size == 1:
        return TensorParallel(group, placement, plan)
    if ROOT in plan:  # its forward pass needs all but the tables whole
        what = f"parallel.tensor {group.tensor_parallel_size} of {group.world} processes for {recipe.model.name}"
        raise InputError(what, "expected all processes to share its tables", "--set parallel.strategy=tp")
    return FullyShardTensorParallel(group, placement, plan, offload=section.offload)


def _full_tensor_requirement(recipe: Recipe, staged: bool) -> str:
    """What in `recipe` needs full tensors, which a sharded model does not have; "" where nothing does."""
    method, optimizer = recipe.start.method, recipe.optimizer.name
    found = {
        optimizer: optimizers.get(optimizer).meta.get("whole_matrices", False),
        "a method in stages": staged,
        f"method {method}": methods.get(method).meta.get("holds_weights", False),
        "sync_batchnorm": recipe.parallel.sync_batchnorm,
    }
    return next((what for what, true in found.items() if true), "")


def with_synced_batchnorm(model: nn.Module, group: Group, placement: Placement) -> nn.Module:
    """`model` with BatchNorm statistics over the batch of all ranks, as on one device (Ioffe and Szegedy 2015).

    Raises:
        InputError: the device is not a GPU, the only kind that torch supports.
    """
    if placement.device.type != "cuda":
        raise InputError(f"parallel.sync_batchnorm on {placement.device.type}", "expected GPUs")
    return nn.SyncBatchNorm.convert_sync_batchnorm(model) if group.world > 1 else model  # type: ignore[no-any-return]


def training_bytes(model: nn.Module) -> int:
    """Bytes that training takes without activations: weights, gradients and the two moments of Adam."""
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return 3 * trained + sum(p.numel() * p.element_size() for p in model.parameters())
