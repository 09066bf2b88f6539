"""The tensor-parallel plan of a decoder-only transformer.

Input projections are sharded by column and output projections by row, so that attention and MLP each communicate
once (Shoeybi et al. 2019, "Megatron-LM"). Between them the sequence is sharded (Korthikanti et al. 2022). Embedding
and head are sharded by vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from bigmodel_cli.core.errors import InputError

if TYPE_CHECKING:
    from torch.distributed.tensor.parallel import ParallelStyle


def tensor_plan(model: nn.Module, parts: int) -> dict[str, ParallelStyle]:
    """The parallel style of each layer of a ``GPT`` over `parts` devices; layers not named are replicated.

    Raises:
        InputError: the key-value heads do not divide evenly, or the model has dropout, which would differ by device.
    """
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.parallel import ColwiseParallel, PrepareModuleInput, RowwiseParallel

    shape = model.shape
    if shape.groups % parts:  # type: ignore[union-attr, operator]
        what = f"{shape.groups} key-value heads over {parts} processes"  # type: ignore[union-attr]
        raise InputError(
            f"tensor parallelism: {what}", "expected a multiple", "fewer processes, or more model.kv_heads"
        )
    if shape.dropout:  # type: ignore[union-attr]
        raise InputError(f"tensor parallelism with dropout {shape.dropout}", "expected none", "--set model.dropout=0")  # type: ignore[union-attr]
    replicated, sharded = Replicate(), Shard(1)
    out = RowwiseParallel(output_layouts=sharded, use_local_output=False)
    gathered = PrepareModuleInput(input_layouts=sharded, desired_input_layouts=replicated)
    plan = {
        "token": RowwiseParallel(input_layouts=replicated, output_layouts=sharded, use_local_output=False),
        "blocks.*.attention.qkv": ColwiseParallel(input_layouts=sharded),
        "blocks.*.attention.proj": out,
        "blocks.*.mixer": gathered,
        "blocks.*.mixer.gate": ColwiseParallel(),
        "blocks.*.mixer.up": ColwiseParallel(),
        "blocks.*.mixer.down": out,
        "head": ColwiseParallel(output_layouts=replicated),
    }
    if model.position is not None:  # the table and the positions are both replicated
        plan["position"] = PrepareModuleInput(input_layouts=replicated, desired_input_layouts=replicated)
    if shape.mlp != "swiglu":  # type: ignore[union-attr]
        del plan["blocks.*.mixer.gate"]
    return plan
