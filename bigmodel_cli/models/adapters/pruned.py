"""A registered architecture with some layers made narrower, as structured pruning leaves it: plain numbers, replayed.

The numbers stand in the recipe (``model.pruned``), so whatever opens a checkpoint builds the same network again:
no module is pickled, and no layer can become larger than the architecture has it.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bigmodel_cli.core.errors import InputError, nearest

Sides = tuple[int | None, int | None]
"""(inputs, outputs) of a layer; None for a side that is as the architecture has it."""

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
KINDS = (*CONVOLUTIONS, nn.Linear, _BatchNorm, nn.LayerNorm, nn.PReLU)


def layer_widths(module: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a layer of one of KINDS; a normalisation has as many of either."""
    if isinstance(module, CONVOLUTIONS):
        return module.in_channels, module.out_channels
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, _BatchNorm):
        return (module.num_features,) * 2
    if isinstance(module, nn.PReLU):
        return (module.num_parameters,) * 2
    assert isinstance(module, nn.LayerNorm)
    return (module.normalized_shape[-1],) * 2


def differences(model: nn.Module, whole: nn.Module) -> dict[str, Sides]:
    """What :func:`narrow` needs to make `whole` like `model`, a pruned copy of it.

    Raises:
        InputError: `model` differs in a way that cannot be said so.
    """
    found: dict[str, Sides] = {}
    for name, module in model.named_modules():
        if isinstance(module, KINDS):
            now, was = layer_widths(module), layer_widths(whole.get_submodule(name))
            if now != was:
                sides = [n if n != w else None for n, w in zip(now, was, strict=True)]
                found[name] = (sides[0], sides[1])
    return found


def narrow(model: nn.Module, pruned: Mapping[str, Sides]) -> nn.Module:
    """`model` with the layers in `pruned` cut down to their first channels, in place; on any device, meta included.

    Raises:
        InputError: a layer is not there, cannot be narrowed, or would not be narrower.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, KINDS)}
    for name, (inputs, outputs) in pruned.items():
        if name not in layers:
            raise InputError(f"model.pruned: the model has no layer {name!r}", nearest(name, layers))
        module = layers[name]
        was = layer_widths(module)
        now = (was[0] if inputs is None else inputs, was[1] if outputs is None else outputs)
        if not all(1 <= n <= w for n, w in zip(now, was, strict=True)):
            raise InputError(f"model.pruned: {name} is {list(now)}", f"expected 1 to {list(was)} inputs and outputs")
        _cut(name, module, *now)
    return model


def _cut(name: str, module: nn.Module, inputs: int, outputs: int) -> None:
    if isinstance(module, CONVOLUTIONS):
        if module.groups == module.in_channels == module.out_channels and inputs == outputs:  # depthwise stays so
            module.groups = inputs
        if inputs % module.groups or outputs % module.groups:
            raise InputError(f"model.pruned: {name} is {[inputs, outputs]}", f"expected multiples of {module.groups}")
        module.weight = _first(module.weight, outputs, inputs // module.groups)
        module.in_channels, module.out_channels = inputs, outputs
    elif isinstance(module, nn.Linear):
        module.weight = _first(module.weight, outputs, inputs)
        module.in_features, module.out_features = inputs, outputs
    elif isinstance(module, _BatchNorm):
        module.num_features = outputs
        if module.weight is not None:
            module.weight = _first(module.weight, outputs)
        if module.running_mean is not None and module.running_var is not None:
            module.running_mean = module.running_mean[:outputs].clone()
            module.running_var = module.running_var[:outputs].clone()
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = (outputs,)
        if module.weight is not None:
            module.weight = _first(module.weight, outputs)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = outputs
        module.weight = _first(module.weight, outputs)
    bias = getattr(module, "bias", None)
    if isinstance(bias, nn.Parameter):
        module.bias = _first(bias, outputs)


def _first(tensor: Tensor, *sides: int) -> nn.Parameter:
    """The first `sides` of the leading dimensions, which keeps what initialisation drew."""
    cut = tensor.detach()[tuple(slice(side) for side in sides)].clone()
    return nn.Parameter(cut, requires_grad=tensor.requires_grad)
