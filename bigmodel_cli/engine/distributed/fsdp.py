"""FSDP2: weights, gradients and optimizer cut over the ranks, gathered a block at a time (Zhao et al. 2023).

A tensor that is cut so is a DTensor; a checkpoint holds it whole, and is the same whatever wrote it.
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
from bigmodel_cli.engine.checkpoint.sharded import rows_of
from bigmodel_cli.engine.device.placement import Placement
from bigmodel_cli.engine.distributed.ddp import DataParallel
from bigmodel_cli.engine.distributed.process_group import Group
from bigmodel_cli.models.layers.meta_init import has_meta_parameters


class ShardedParallel(DataParallel):
    """What the strategies have in common that cut tensors over the ranks."""

    shards_tensors = True

    def out_of_memory(self, here: bool) -> bool:
        if here:  # the others wait in the middle of a pass: there is no way back to its beginning
            what = f"out of memory on rank {self.group.rank}, whose model is cut over the ranks"
            raise MachineError(what, hint="--set train.accumulate=2, --set model.checkpointing=true, or more processes")
        return False

    def gather_full(self, value: Any, keep: bool = True) -> Any:
        if isinstance(value, DTensor):
            full = value.full_tensor()
            return full if keep else full.new_empty(0)  # gathered by all ranks, held by those that need it
        if isinstance(value, dict):
            return {k: self.gather_full(v, keep) for k, v in value.items()}
        return type(value)(self.gather_full(v, keep) for v in value) if type(value) in (list, tuple) else value

    def shard_state(self, values: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
        return {k: distribute_like(v, like[k]) if k in like else v for k, v in values.items()}

    def shard_optimizer_state(self, state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        cut = {i: {k: distribute_like(v, parameters[i]) for k, v in held.items()} for i, held in state["state"].items()}
        return {**state, "state": cut}


class FullyShard(ShardedParallel):
    """Each rank keeps a part of every tensor, and takes its share of each batch."""

    strategy = "fsdp"

    def __init__(self, group: Group, placement: Placement, *, offload: bool) -> None:
        super().__init__(group, unused=False)
        device = placement.device.type
        if offload and device == "cpu":
            raise InputError("parallel.offload on a CPU", "expected GPUs, whose memory it spares")
        self.device = placement.device
        self.mesh = init_device_mesh(device, (group.world,))
        bf16 = placement.precision == "bf16"
        # Sums over ranks stay fp32: many small gradients would vanish in bf16.
        self.precision = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if bf16 else MixedPrecisionPolicy()
        self.offload = CPUOffloadPolicy() if offload else OffloadPolicy()
        self.model: Any = None

    def wrap(self, model: nn.Module) -> nn.Module:
        """`model`, cut in place: each block by itself, then what is left."""
        options: dict[str, Any] = {"mesh": self.mesh, "mp_policy": self.precision, "offload_policy": self.offload}
        # The losses of a language model are a view of what it computed, and nothing changes them in place.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        parameters_on_meta = self.group.all_gather(float(has_meta_parameters(model)))
        for part in (*repeated_blocks(model), model):
            if any(
                parameters_on_meta
            ):  # a block at a time, and what is left of it is cut: no rank but 0 ever holds the whole
                materialize(part, model, self.device, first_has_them=not parameters_on_meta[0])
            fully_shard(part, **options)  # type: ignore[arg-type]
            if any(parameters_on_meta):
                gc.collect()  # fully_shard leaves the whole tensors in a cycle
        self.model = model
        return model

    def syncing(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        assert isinstance(self.model, FSDPModule)
        self.model.set_requires_gradient_sync(last)
        return contextlib.nullcontext()

    def local_rows(self, value: Tensor) -> tuple[Tensor, int] | None:
        if not isinstance(value, DTensor):
            return None
        return value.to_local(), rows_of((self.group.rank, self.group.world), len(value))[0]

    @property
    def saves_shards(self) -> bool:
        return True


def distribute_like(value: Any, target: Any) -> Any:
    """The whole tensor `value` cut as `target` is, where they are of one shape: no rank asks another."""
    if isinstance(value, Tensor) and isinstance(target, DTensor) and value.shape == target.shape:
        mesh = target.device_mesh
        return distribute_tensor(value.to(target.device), mesh, target.placements, src_data_rank=None)
    return value


def materialize(part: nn.Module, model: nn.Module, device: torch.device, first_has_them: bool) -> None:
    """Give the parameters of `part` of `model` memory on `device`, and rank 0's values where it has them.

    Every rank calls it, on the parts in the same order. What is tied stays tied. What is cut
    already is left alone; without `first_has_them` the values are whatever was there.
    """
    whole = {id(p): p for p in part.parameters() if not isinstance(p, DTensor)}
    now = {}
    for key, parameter in whole.items():
        value = torch.empty_like(parameter, device=device) if parameter.is_meta else parameter.detach().to(device)
        if first_has_them:
            dist.broadcast(value, 0)
        now[key] = nn.Parameter(value, parameter.requires_grad) if parameter.is_meta else parameter
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) in now:
                module.register_parameter(name, now[id(parameter)])


def repeated_blocks(model: nn.Module) -> Iterator[nn.Module]:
    """What repeats in a model: the members of each list or sequence that holds several of one class."""
    for module in model.modules():
        if isinstance(module, (nn.ModuleList, nn.Sequential)):
            kinds = [type(child) for child in module]
            for child in module:
                if kinds.count(type(child)) > 1 and next(child.parameters(), None) is not None and not _leaf(child):
                    yield child


def _leaf(module: nn.Module) -> bool:
    return next(module.children(), None) is None
