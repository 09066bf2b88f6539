"""Low-rank adapters on linear, convolution and attention layers."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from bigmodel_cli.adapt.freeze import below_head, freeze, inside
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import methods
from bigmodel_cli.core.types import Adapted, Start


@methods.register("lora", lr=2e-3)
def lora(
    start: Start,
    *,
    rank: Annotated[int, Field(gt=0)] = 8,
    alpha: Annotated[float, Field(gt=0)] = 16.0,
    layers: tuple[str, ...] = (),
) -> Adapted:
    """Low-rank updates W + (alpha / rank) B A train beside frozen weights, with the head whole (Hu et al. 2021).

    `layers` are names, or parts of names, of the layers to adapt; none means all.
    Checkpoints keep the adapters apart; whatever loads one multiplies them out.

    Raises:
        InputError: there is no layer that `rank` is small for.
    """
    from bigmodel_cli.models.low_rank import add_adapter, weights_to_adapt

    chosen = [
        (name, module, key)
        for name, module, key in weights_to_adapt(start.model, rank)
        if not inside(name, start.head) and (not layers or any(part in name for part in layers))
    ]
    if not chosen:
        asked = f" named {', '.join(layers)}" if layers else ""
        raise InputError(f"lora: no layer{asked} to adapt with rank {rank}", "expected a smaller rank or other layers")
    held = set(below_head(start))
    for _, module, key in chosen:
        add_adapter(module, key, rank, alpha)
    # What was there before is frozen, under its new name where it was given one; A and B are new and train.
    renamed = {f"{name}.{key}".lstrip("."): f"{name}.parametrizations.{key}.original" for name, _, key in chosen}
    return Adapted(freeze(start.model, {renamed.get(key, key) for key in held}))
