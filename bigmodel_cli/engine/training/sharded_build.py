"""Build a run's components for each process of a job: its batches, its shard and its model on the device."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.recipe import Recipe
from bigmodel_cli.core.registry import methods, optimizers
from bigmodel_cli.core.types import Source
from bigmodel_cli.data.batches import Batches
from bigmodel_cli.engine.checkpoint.sharded import ShardSpec
from bigmodel_cli.engine.device.placement import Placement
from bigmodel_cli.engine.distributed.base import Parallel
from bigmodel_cli.engine.distributed.process_group import Group
from bigmodel_cli.engine.distributed.strategy import with_synced_batchnorm


def build_ema(recipe: Recipe, model: nn.Module, parallel: Parallel) -> AveragedModel | None:
    """Build the recipe's exponential moving average of the weights, sharded in the same way as the model."""
    decay = recipe.train.ema_decay
    if decay is None:
        return None
    many, one = get_ema_multi_avg_fn(decay), get_ema_avg_fn(decay)

    def average(averages: Any, weights: Any, count: Any) -> None:
        """Update tensors of one dtype. Integer tensors, such as packed weights, are copied, not averaged."""
        if averages[0].is_floating_point():
            many(averages, weights, count)
        else:
            torch._foreach_copy_(averages, weights)

    if not parallel.shards_tensors:
        return AveragedModel(model, multi_avg_fn=average, use_buffers=True)
    from torch.distributed.fsdp import FSDPModule  # slow to import

    def average_one(average: Tensor, weight: Tensor, count: Any) -> Tensor:
        return one(average, weight, count) if average.is_floating_point() else weight

    # One tensor at a time: sharded tensors and buffers cannot be updated together.
    ema = AveragedModel(model, avg_fn=average_one, use_buffers=True)
    parallel.wrap(ema.module)
    if isinstance(ema.module, FSDPModule):
        # If it stayed unsharded after an evaluation, it could not be averaged with the sharded weights.
        ema.module.set_reshard_after_forward(True)
    return ema


def batches_for(recipe: Recipe, train: Source, even: Tensor | None, group: Group) -> Batches:
    """Return this rank's batches of the train split.

    Raises:
        InputError: a step has fewer samples than there are data-parallel ranks.
    """
    batches = Batches(
        train,
        batch_size(recipe, train, group),
        recipe.train.seed,
        even,
        group.data_parallel_rank,
        group.data_parallel_size,
    )
    smallest = batches.size(batches.steps_per_epoch - 1)
    if smallest < group.data_parallel_size:
        expected = f"expected at least one for each of {group.data_parallel_size} processes"
        raise InputError(f"{smallest} samples per step", expected, "a larger --batch-size")
    return batches


def with_tensor_parallel_size(group: Group, recipe: Recipe) -> Group:
    """Set the tensor-parallel size of `group`: how many consecutive ranks share each matrix.

    Raises:
        InputError: it does not divide the number of processes, or the strategy has no tensor parallelism.
    """
    section = recipe.parallel
    size = group.world if section.strategy == "tp" and section.tensor == 1 else section.tensor
    if group.world == 1 or size == 1:
        return group
    if section.strategy not in ("fsdp", "tp"):
        problem = f"parallel.tensor {size} with parallel.strategy {section.strategy}"
        raise InputError(problem, "expected fsdp or tp", "--set parallel.strategy=fsdp")
    if group.world % size or (section.strategy == "tp" and size != group.world):
        problem = f"parallel.tensor {size} with {section.strategy} of {group.world} processes"
        raise InputError(
            problem,
            "expected a divisor of the number of processes; tp uses all of them",
            "--set parallel.strategy=fsdp",
        )
    return replace(group, tensor_parallel_size=size)


def shards_parameters(recipe: Recipe, group: Group) -> bool:
    return group.world > 1 and recipe.parallel.strategy in ("fsdp", "tp")


def own_shard(recipe: Recipe, group: Group) -> ShardSpec | None:
    """Return this rank's shard of every tensor if all tensors are sharded by rows, else None."""
    rows = group.world > 1 and recipe.parallel.strategy == "fsdp" and recipe.parallel.tensor == 1
    return ShardSpec(group.rank, group.world) if rows else None


def builds_on_meta(recipe: Recipe, group: Group, resumed: bool) -> bool:
    """Whether this process builds the model on the meta device and receives its shard of the weights later.

    The weights come from rank 0, which initializes them, or from the checkpoint if the run is resumed.
    """
    sharded = own_shard(recipe, group) is not None
    # Other fine-tuning methods modify weights that must exist already.
    as_built = methods.get(recipe.start.method).meta.get("builds_on_meta", False)
    return sharded and as_built and (resumed or (not group.is_main and not recipe.start.trained))


def on_device(recipe: Recipe, model: nn.Module, placement: Placement, group: Group) -> nn.Module:
    """Move `model` to the device. A model to be sharded is moved shard by shard, since it may not fit as a whole."""
    if recipe.parallel.sync_batchnorm:
        model = with_synced_batchnorm(model, group, placement)
    return model if shards_parameters(recipe, group) else placement.model(model)


def broadcast_placement(recipe: Recipe, placement: Placement, model: nn.Module, group: Group) -> Placement:
    """Broadcast rank 0's placement choices to every rank."""
    if group.world == 1 or shards_parameters(recipe, group):
        return placement
    placement = placement.with_(**group.broadcast({**placement.choices(), "why": placement.why}))
    placement.set_threads()
    placement.model(model)
    return placement


def batch_size(recipe: Recipe, train: Source, group: Group) -> int:
    """Return the batch size over all ranks: the recipe's, or the whole split for a full-batch optimizer."""
    full = optimizers.get(recipe.optimizer.name).meta.get("full_batch", False)
    return (
        len(train)
        if full
        else min(recipe.train.batch_size * (group.data_parallel_size if recipe.parallel.scale_lr else 1), len(train))
    )
