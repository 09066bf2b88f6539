"""How the blocks of a decoder-only transformer are cut over devices that share each matrix.

Columns of what goes in and rows of what comes out, so that each half of a block sends once (Shoeybi et al. 2019,
"Megatron-LM"). Between them the sequence is cut (Korthikanti et al. 2022). Embedding and head are cut by vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from bigmodel_cli.core.errors import InputError

if TYPE_CHECKING:
    from torch.distributed.tensor.parallel import ParallelStyle


def tensor_plan(model: nn.Module, parts: int) -> dict[str, ParallelStyle]:
    """Torch's style for each kind of layer of a ``GPT``, to be cut into `parts`; what is not named is on every device.

    Raises:
        InputError: its key-value heads cannot be dealt out evenly, or it has dropout, which would not agree.
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
    whole, cut = Replicate(), Shard(1)
    out = RowwiseParallel(output_layouts=cut, use_local_output=False)
    gathered = PrepareModuleInput(input_layouts=cut, desired_input_layouts=whole)
    plan = {
        "token": RowwiseParallel(input_layouts=whole, output_layouts=cut, use_local_output=False),
        "blocks.*.attention.qkv": ColwiseParallel(input_layouts=cut),
        "blocks.*.attention.proj": out,
        "blocks.*.mixer": gathered,
        "blocks.*.mixer.gate": ColwiseParallel(),
        "blocks.*.mixer.up": ColwiseParallel(),
        "blocks.*.mixer.down": out,
        "head": ColwiseParallel(output_layouts=whole),
    }
    if model.position is not None:  # on every device, and asked for places that are on every device
        plan["position"] = PrepareModuleInput(input_layouts=whole, desired_input_layouts=whole)
    if shape.mlp != "swiglu":  # type: ignore[union-attr]
        del plan["blocks.*.mixer.gate"]
    return plan
