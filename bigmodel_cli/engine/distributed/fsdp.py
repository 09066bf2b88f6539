"""FSDP2: weights, gradients and optimizer state are sharded over the ranks (Zhao et al. 2023).

Full weights are gathered one block at a time. A sharded tensor is a DTensor. A checkpoint holds full tensors,
so it does not depend on the strategy that wrote it.
"""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from bigmodel_cli.core.errors import InputError, MachineError
from bigmodel_cli.engine.checkpoint.sharded import ShardSpec, shard_rows
from bigmodel_cli.engine.device.placement import Placement
from bigmodel_cli.engine.distributed.ddp import DataParallel
from bigmodel_cli.engine.distributed.process_group import Group
from bigmodel_cli.models.layers.meta_init import has_meta_parameters


class ShardedParallel(DataParallel):
    """The base of the strategies that shard tensors over the ranks."""

    shards_tensors = True

    def out_of_memory(self, local: bool) -> bool:
        if local:  # the other ranks wait inside a pass: the step cannot be started again
            what = f"out of memory on rank {self.group.rank} of a sharded model"
            raise MachineError(what, hint="--set train.accumulate=2, --set model.checkpointing=true, or more processes")
        return False

    def gather_full(self, value: Any, keep: bool = True) -> Any:
        if isinstance(value, DTensor):
            full = value.full_tensor()
            return full if keep else full.new_empty(0)  # all ranks take part in the gather
        if isinstance(value, dict):
            return {k: self.gather_full(v, keep) for k, v in value.items()}
        return type(value)(self.gather_full(v, keep) for v in value) if type(value) in (list, tuple) else value

    def shard_state(self, values: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
        return {k: distribute_like(v, like[k]) if k in like else v for k, v in values.items()}

    def shard_optimizer_state(self, state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        sharded = {
            i: {k: distribute_like(v, parameters[i]) for k, v in tensors.items()}
            for i, tensors in state["state"].items()
        }
        return {**state, "state": sharded}


class FullyShard(ShardedParallel):
    """Each rank holds a shard of every tensor and computes its part of each batch."""

    strategy = "fsdp"

    def __init__(self, group: Group, placement: Placement, *, offload: bool) -> None:
        super().__init__(group, find_unused=False)
        device = placement.device.type
        if offload and device == "cpu":
            raise InputError("parallel.offload on a CPU", "expected GPUs: offloading saves their memory")
        self.device = placement.device
        self.mesh = init_device_mesh(device, (group.world,))
        bf16 = placement.precision == "bf16"
        # Gradients are reduced in fp32: many small ones would vanish in bf16.
        self.precision = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if bf16 else MixedPrecisionPolicy()
        self.offload = CPUOffloadPolicy() if offload else OffloadPolicy()
        self.model: Any = None

    def wrap(self, model: nn.Module) -> nn.Module:
        """Shard `model` in place: each block by itself, then the remaining parameters."""
        options: dict[str, Any] = {"mesh": self.mesh, "mp_policy": self.precision, "offload_policy": self.offload}
        # The losses of a language model are views, which nothing changes in place.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        parameters_on_meta = self.group.all_gather(float(has_meta_parameters(model)))
        for block in (*repeated_blocks(model), model):
            if any(parameters_on_meta):  # one block at a time: no rank but 0 ever holds the full model
                materialize(block, model, self.device, from_rank_zero=not parameters_on_meta[0])
            fully_shard(block, **options)  # type: ignore[arg-type]
            if any(parameters_on_meta):
                gc.collect()  # fully_shard leaves the full tensors in a reference cycle
        self.model = model
        return model

    def syncing(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        assert isinstance(self.model, FSDPModule)
        self.model.set_requires_gradient_sync(last)
        return contextlib.nullcontext()

    def local_rows(self, value: Tensor) -> tuple[Tensor, int] | None:
        if not isinstance(value, DTensor):
            return None
        return value.to_local(), shard_rows(ShardSpec(self.group.rank, self.group.world), len(value))[0]

    @property
    def saves_shards(self) -> bool:
        return True


def distribute_like(value: Any, target: Any) -> Any:
    """The full tensor `value`, sharded like `target` where their shapes match. Needs no communication."""
    if isinstance(value, Tensor) and isinstance(target, DTensor) and value.shape == target.shape:
        mesh = target.device_mesh
        return distribute_tensor(value.to(target.device), mesh, target.placements, src_data_rank=None)
    return value


def materialize(block: nn.Module, model: nn.Module, device: torch.device, from_rank_zero: bool) -> None:
    """Allocate the parameters of `block`, a part of `model`, on `device`; with `from_rank_zero` broadcast its values.

    Every rank calls it with the blocks in the same order. Tied parameters stay tied, and sharded ones are
    skipped. Without `from_rank_zero` the values are uninitialised.
    """
    full_parameters = {id(p): p for p in block.parameters() if not isinstance(p, DTensor)}
    materialized = {}
    for identity, parameter in full_parameters.items():
        value = torch.empty_like(parameter, device=device) if parameter.is_meta else parameter.detach().to(device)
        if from_rank_zero:
            dist.broadcast(value, 0)
        materialized[identity] = nn.Parameter(value, parameter.requires_grad) if parameter.is_meta else parameter
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) in materialized:
                module.register_parameter(name, materialized[id(parameter)])


def repeated_blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The repeated blocks of a model: members of a ModuleList or Sequential that holds several of their class."""
    for module in model.modules():
        if isinstance(module, (nn.ModuleList, nn.Sequential)):
            types = [type(child) for child in module]
            for child in module:
                if types.count(type(child)) > 1 and next(child.parameters(), None) is not None and not _is_leaf(child):
                    yield child


def _is_leaf(module: nn.Module) -> bool:
    return next(module.children(), None) is None
