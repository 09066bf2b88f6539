"""Tensor parallelism: each matrix is sharded over several ranks, which see the same samples (Shoeybi et al. 2019).

The registration of a model has the plan for its layers (``tensor_plan``), which torch's DTensor carries out.
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


def tensor_plan(recipe: Recipe, model: nn.Module, width: int) -> dict[str, Any]:
    """The tensor-parallel plan of the recipe's model for `width` ranks.

    Raises:
        InputError: the model has no plan, or its matrices cannot be divided by `width`.
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
    """Every matrix is sharded over all ranks, and each rank sees the full batch."""

    strategy = "tp"

    def __init__(self, group: Group, placement: Placement, plan: Mapping[str, Any]) -> None:
        super().__init__(group, find_unused=False)
        self.device, self.plan = placement.device, plan
        self.mesh = init_device_mesh(self.device.type, (group.world,))

    def wrap(self, model: nn.Module) -> nn.Module:
        shard_matrices(model, self.mesh, self.plan)
        return model.to(self.device)  # moves the buffers: the parameters are there already

    def syncing(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def all_reduce(self, value: Tensor) -> Tensor:
        return value

    def average_buffers(self, run: Any) -> None:
        """Nothing to do: every rank saw the same samples."""


class FullyShardTensorParallel(FullyShard):
    """Every matrix is sharded over a group of ranks by tensor parallelism, and its shards over the groups by FSDP2."""

    strategy = "fsdp x tp"

    def __init__(self, group: Group, placement: Placement, plan: Mapping[str, Any], *, offload: bool) -> None:
        super().__init__(group, placement, offload=offload)
        self.plan = plan
        # torch warns that tensors sharded twice are gathered, and their norms summed, in two steps: as intended.
        logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
        mesh = init_device_mesh(
            placement.device.type,
            (group.data_parallel_size, group.tensor_parallel_size),
            mesh_dim_names=("data", "tensor"),
        )
        self.mesh, self.tensor_mesh = mesh["data"], mesh["tensor"]

    def wrap(self, model: nn.Module) -> nn.Module:
        shard_matrices(model, self.tensor_mesh, self.plan)
        return super().wrap(model)

    def all_reduce(self, value: Tensor) -> Tensor:
        torch.distributed.all_reduce(value, group=self.mesh.get_group())
        return value

    @property
    def saves_shards(self) -> bool:
        return False  # a shard is a block of rows and columns


def shard_matrices(model: nn.Module, mesh: Any, plan: Mapping[str, Any]) -> None:
    """Shard `model` in place by `plan`; other parameters are replicated, and tied ones stay tied.

    Every rank has the same weights, so no communication is needed.
    """
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append((module, name))
    parallelize_module(model, mesh, dict(plan), src_data_rank=None)
    for owned in owners.values():
        module, name = owned[0]
        parameter = getattr(module, name)
        if not isinstance(parameter, DTensor):
            replicated = distribute_tensor(parameter.detach(), mesh, [Replicate()], src_data_rank=None)
            parameter = nn.Parameter(replicated, requires_grad=parameter.requires_grad)
        for module, name in owned:
            module.register_parameter(name, parameter)
