"""The tensor-parallel plan of models whose size is their embedding tables: each rank holds a part of their rows.

A lookup gives the rows that a rank holds and zeros for the others, and the sum over the ranks is the result (DTensor
does both). Everything else is small: each rank holds and computes all of it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor.parallel import ParallelStyle


ROOT = ""
"""The name of the whole model in a plan."""


def table_plan(*tables: str) -> Callable[[nn.Module, int], dict[str, ParallelStyle]]:
    """The plan that shards the embeddings called `tables` by row, over any number of ranks."""

    def plan(model: nn.Module, parts: int) -> dict[str, ParallelStyle]:
        from torch.distributed.tensor import Replicate
        from torch.distributed.tensor.parallel import ParallelStyle, RowwiseParallel

        class LocalReplicas(ParallelStyle):
            def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
                return with_local_replicas(module)

        rows = {name: RowwiseParallel(input_layouts=Replicate(), output_layouts=Replicate()) for name in tables}
        return {**rows, ROOT: LocalReplicas()}

    return plan


def whole_table(table: nn.Embedding) -> Tensor:
    """(R,D) all rows of `table`; where each rank holds some, every rank gathers them."""
    weight: Tensor = table.weight
    sharded = sys.modules.get("torch.distributed.tensor")  # whose import takes seconds
    return weight.full_tensor() if sharded is not None and isinstance(weight, sharded.DTensor) else weight


def with_local_replicas(model: nn.Module) -> nn.Module:
    """Let the forward pass of `model` see its replicated DTensors as plain tensors, which mix with its inputs.

    The ranks compute the same from them, so their gradients are the same, too.
    """
    swapped: list[tuple[nn.Module, str, nn.Parameter]] = []

    def use_local(module: nn.Module, _: Any) -> None:
        from torch.distributed.tensor import DTensor

        for owner in module.modules():
            for name, parameter in owner._parameters.items():
                if isinstance(parameter, DTensor) and all(p.is_replicate() for p in parameter.placements):
                    swapped.append((owner, name, parameter))
        for owner, name, parameter in swapped:
            owner._parameters[name] = parameter.to_local()  # type: ignore[attr-defined]

    def restore(module: nn.Module, _: Any, output: Any) -> None:
        for owner, name, parameter in swapped:
            owner._parameters[name] = parameter
        swapped.clear()

    model.register_forward_pre_hook(use_local)
    model.register_forward_hook(restore, always_call=True)
    return model
