"""Tensor parallelism: several ranks share each matrix of a model, and see the same samples (Shoeybi et al. 2019).

The family of a model says how its layers are cut (``tensor_plan`` in its registration), torch's DTensor does it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor
from torch.distributed.tensor.parallel import parallelize_module
from torch.nn.utils.parametrize import is_parametrized

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.recipe import Recipe
from bigmodel_cli.core.registry import models
from bigmodel_cli.engine.device.placement import Placement
from bigmodel_cli.engine.distributed.fsdp import FullyShard, ShardedParallel
from bigmodel_cli.engine.distributed.process_group import Group


def plan_for(recipe: Recipe, model: nn.Module, width: int) -> dict[str, Any]:
    """The plan of the recipe's model for `width` ranks.

    Raises:
        InputError: it has none, or cannot be cut so.
    """
    make = models.get(recipe.model.name).meta.get("tensor_plan")
    if make is None:
        what = f"{recipe.model.name} has no plan for tensor parallelism"
        raise InputError(what, "expected a model that has one", "--set parallel.strategy=fsdp")
    if any(is_parametrized(module) for module in model.modules()):  # adapted, rounded or in 4 bits
        what = f"tensor parallelism with method {recipe.start.method}"
        raise InputError(what, "expected plain weights", "--set parallel.strategy=ddp")
    return make(model, width)  # type: ignore[no-any-return]


class TensorParallel(ShardedParallel):
    """All ranks share every matrix, and each sees the whole batch."""

    strategy = "tp"

    def __init__(self, group: Group, placement: Placement, plan: Mapping[str, Any]) -> None:
        super().__init__(group, unused=False)
        self.device, self.plan = placement.device, plan
        self.mesh = init_device_mesh(self.device.type, (group.world,))

    def wrap(self, model: nn.Module) -> nn.Module:
        share_matrices(model, self.mesh, self.plan)
        return model.to(self.device)  # the buffers: the parameters are there

    def syncing(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def summed(self, value: Tensor) -> Tensor:
        return value

    def average_buffers(self, run: Any) -> None:
        """Every rank counted the same."""


class FullyShardTensorParallel(FullyShard):
    """Rows of ranks share every matrix, and over the columns what each holds of them is cut once more by FSDP2."""

    strategy = "fsdp x tp"

    def __init__(self, group: Group, placement: Placement, plan: Mapping[str, Any], *, offload: bool) -> None:
        super().__init__(group, placement, offload=offload)
        self.plan = plan
        # That a tensor cut twice is gathered in two steps, and a norm summed so, is meant.
        logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
        both = init_device_mesh(placement.device.type, (group.shards, group.width), mesh_dim_names=("data", "tensor"))
        self.mesh, self.rows = both["data"], both["tensor"]

    def wrap(self, model: nn.Module) -> nn.Module:
        share_matrices(model, self.rows, self.plan)
        return super().wrap(model)

    def summed(self, value: Tensor) -> Tensor:
        torch.distributed.all_reduce(value, group=self.mesh.get_group())
        return value

    @property
    def saves_shards(self) -> bool:
        return False  # a part has rows and columns


def share_matrices(model: nn.Module, mesh: Any, plan: Mapping[str, Any]) -> None:
    """Cut `model` in place by `plan`; what that does not name is whole on every rank, and ties stay ties.

    Every rank has the same weights, so none asks another.
    """
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            places.setdefault(id(parameter), []).append((module, name))
    parallelize_module(model, mesh, dict(plan), src_data_rank=None)
    for same in places.values():
        module, name = same[0]
        parameter = getattr(module, name)
        if not isinstance(parameter, DTensor):
            spread = distribute_tensor(parameter.detach(), mesh, [Replicate()], src_data_rank=None)
            parameter = nn.Parameter(spread, requires_grad=parameter.requires_grad)
        for module, name in same:
            module.register_parameter(name, parameter)
