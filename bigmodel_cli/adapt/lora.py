"""Low-rank adapters on linear, convolution and attention layers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from bigmodel_cli.adapt.freeze import below_head, freeze, head_solver, inside
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import methods
from bigmodel_cli.core.types import Adapted, Start

Base = Annotated[
    Literal["exact", "nf4", "nf4-double"],
    Field(description="the frozen weights of linear layers: exact, or 4-bit NF4; double: with 8-bit scales"),
]


@methods.register("lora", lr=2e-3, lr_of_published_text=5e-4, auto=3)
def lora(
    start: Start,
    *,
    rank: Annotated[int, Field(gt=0)] = 8,
    alpha: Annotated[float, Field(gt=0)] = 16.0,
    layers: tuple[str, ...] = (),
    base: Base = "exact",
    solve: bool = False,
) -> Adapted:
    """Low-rank updates W + (alpha / rank) B A of frozen weights train, and the whole head (Hu et al. 2021).

    `layers` are names of layers to adapt, or parts of names; by default all. With `base` nf4, the frozen
    weights of every linear layer below the head, adapted or not, are stored in 4 bits (QLoRA, Dettmers et al. 2023).
    Checkpoints store the adapters separately; loading merges them. `solve` as in full.

    Raises:
        InputError: no layer is larger than `rank`, or none can be stored in 4 bits.
    """
    from bigmodel_cli.models.adapters.lora import LowRank, add_adapter, weights_to_adapt
    from bigmodel_cli.models.quantization.nf4 import NF4Linear

    adapted = {
        name: (module, key)
        for name, module, key in weights_to_adapt(start.model, rank)
        if not inside(name, start.head) and (not layers or any(part in name for part in layers))
    }
    if not adapted:
        filter_text = f" named {', '.join(layers)}" if layers else ""
        raise InputError(
            f"lora: the model has no layer{filter_text} to adapt with rank {rank}",
            "expected a smaller rank or other layers",
        )
    quantized = {} if base == "exact" else _quantizable_layers(start)
    if base != "exact" and not quantized:
        raise InputError(f"start.base = {base}: no linear layer to store in 4 bits", "expected a model with some")
    for name, (module, key) in adapted.items():
        if name not in quantized:
            add_adapter(module, key, rank, alpha)
    for name, layer in quantized.items():
        adapter = LowRank(layer.weight.detach(), rank, alpha) if name in adapted else None
        start.model.set_submodule(name, NF4Linear(layer, base == "nf4-double", adapter))
    adapters = {name for name, module in start.model.named_modules() if isinstance(module, LowRank)}
    held = {key for key in below_head(start) if key.rpartition(".")[0] not in adapters}
    return Adapted(freeze(start.model, held), first_head=head_solver(start) if solve else None)


def _quantizable_layers(start: Start) -> dict[str, nn.Linear]:
    """The linear layers below the head, by name, whose weights are not shared and divide into blocks.

    Subclasses of Linear are skipped: torch's attention reads their weight directly and never calls them.
    """
    from bigmodel_cli.models.quantization.nf4 import can_quantize

    names = [id(module) for _, module in start.model.named_modules(remove_duplicate=False)]
    owners = [id(p) for _, p in start.model.named_parameters(remove_duplicate=False)]
    return {
        name: module
        for name, module in start.model.named_modules()
        if type(module) is nn.Linear
        and name
        and not inside(name, start.head)
        and can_quantize(module.weight)
        and names.count(id(module)) == owners.count(id(module.weight)) == 1
    }
