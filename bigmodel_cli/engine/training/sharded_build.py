"""What a run is built of, as each of its processes has it: its share of the batches, the model where it runs."""

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
    """The moving average of the weights that the recipe asks for, spread over ranks as the model will be."""
    decay = recipe.train.ema_decay
    if decay is None:
        return None
    many, one = get_ema_multi_avg_fn(decay), get_ema_avg_fn(decay)

    def average(kept: Any, now: Any, count: Any) -> None:
        """A group of tensors of one type: whole numbers, as of packed weights, have no average between them."""
        if kept[0].is_floating_point():
            many(kept, now, count)
        else:
            torch._foreach_copy_(kept, now)

    if not parallel.shards_tensors:
        return AveragedModel(model, multi_avg_fn=average, use_buffers=True)
    from torch.distributed.fsdp import FSDPModule  # slow to import

    each = lambda kept, now, count: one(kept, now, count) if kept.is_floating_point() else now  # noqa: E731
    ema = AveragedModel(model, avg_fn=each, use_buffers=True)  # cut tensors and buffers do not mix
    parallel.wrap(ema.module)
    if isinstance(ema.module, FSDPModule):  # whole after an evaluation, it could not be averaged with what is cut
        ema.module.set_reshard_after_forward(True)
    return ema


def batches_for(recipe: Recipe, train: Source, even: Tensor | None, group: Group) -> Batches:
    """This rank's share of the train split.

    Raises:
        InputError: a step has fewer samples than there are ranks.
    """
    batches = Batches(
        train,
        batch_size(recipe, train, group),
        recipe.train.seed,
        even,
        group.data_parallel_rank,
        group.data_parallel_size,
    )
    least = batches.size(batches.steps_per_epoch - 1)
    if least < group.data_parallel_size:
        expected = f"expected at least one for each of {group.data_parallel_size} processes"
        raise InputError(f"{least} samples in a step", expected, "a larger --batch-size")
    return batches


def with_width(group: Group, recipe: Recipe) -> Group:
    """`group`, of which the recipe has so many ranks in a row share each matrix.

    Raises:
        InputError: they do not go into the number of processes, or the strategy cuts no matrices.
    """
    section = recipe.parallel
    width = group.world if section.strategy == "tp" and section.tensor == 1 else section.tensor
    if group.world == 1 or width == 1:
        return group
    if section.strategy not in ("fsdp", "tp"):
        what = f"parallel.tensor {width} with parallel.strategy {section.strategy}"
        raise InputError(what, "expected fsdp or tp", "--set parallel.strategy=fsdp")
    if group.world % width or (section.strategy == "tp" and width != group.world):
        what = f"parallel.tensor {width} with {section.strategy} of {group.world} processes"
        raise InputError(what, "expected that it divides them; tp: all of them", "--set parallel.strategy=fsdp")
    return replace(group, tensor_parallel_size=width)


def shards_parameters(recipe: Recipe, group: Group) -> bool:
    return group.world > 1 and recipe.parallel.strategy in ("fsdp", "tp")


def own_shard(recipe: Recipe, group: Group) -> ShardSpec | None:
    """Which rows of every tensor are this rank's, where each has rows and nothing else."""
    rows = group.world > 1 and recipe.parallel.strategy == "fsdp" and recipe.parallel.tensor == 1
    return ShardSpec(group.rank, group.world) if rows else None


def builds_on_meta(recipe: Recipe, group: Group, resumed: bool) -> bool:
    """Whether this process builds the model without weights, whose part of them comes later.

    From rank 0, which draws them; or for every rank from the checkpoint that is resumed.
    """
    parts = own_shard(recipe, group) is not None
    as_built = methods.get(recipe.start.method).meta.get("builds_on_meta", False)  # others change what is there
    return parts and as_built and (resumed or (not group.is_main and not recipe.start.trained))


def on_device(recipe: Recipe, model: nn.Module, placement: Placement, group: Group) -> nn.Module:
    """`model` on the device; what is to be cut over ranks goes there part by part, and need not fit whole."""
    if recipe.parallel.sync_batchnorm:
        model = with_synced_batchnorm(model, group, placement)
    return model if shards_parameters(recipe, group) else placement.model(model)


def agreed(recipe: Recipe, placement: Placement, model: nn.Module, group: Group) -> Placement:
    """Rank 0's choices, on every rank."""
    if group.world == 1 or shards_parameters(recipe, group):
        return placement
    placement = placement.with_(**group.broadcast({**placement.choices(), "why": placement.why}))
    placement.set_threads()
    placement.model(model)
    return placement


def batch_size(recipe: Recipe, train: Source, group: Group) -> int:
    """The recipe's batch size over all ranks, or the whole split where the optimizer is defined on it."""
    full = optimizers.get(recipe.optimizer.name).meta.get("full_batch", False)
    return (
        len(train)
        if full
        else min(recipe.train.batch_size * (group.data_parallel_size if recipe.parallel.scale_lr else 1), len(train))
    )
