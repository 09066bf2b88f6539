"""Rebuild a structurally pruned network from its layer widths.

The widths are plain numbers in the recipe (``model.pruned``), so loading a checkpoint rebuilds the same network.
No module is pickled, and no layer can become wider than in the original architecture.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bigmodel_cli.core.errors import InputError, nearest

Widths = tuple[int | None, int | None]
"""(inputs, outputs) of a layer; None where the width is unchanged."""

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
PRUNABLE = (*CONVOLUTIONS, nn.Linear, _BatchNorm, nn.LayerNorm, nn.PReLU)


def layer_widths(module: nn.Module) -> tuple[int, int]:
    """The input and output width of a layer of a type in PRUNABLE; equal for a normalisation layer."""
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


def diff_widths(model: nn.Module, whole: nn.Module) -> dict[str, Widths]:
    """The widths with which :func:`narrow` turns `whole` into `model`, its pruned copy."""
    found: dict[str, Widths] = {}
    for name, module in model.named_modules():
        if isinstance(module, PRUNABLE):
            now, was = layer_widths(module), layer_widths(whole.get_submodule(name))
            if now != was:
                sides = [n if n != w else None for n, w in zip(now, was, strict=True)]
                found[name] = (sides[0], sides[1])
    return found


def narrow(model: nn.Module, pruned: Mapping[str, Widths]) -> nn.Module:
    """Cut the layers in `pruned` down to their first channels, in place. Works on any device, including meta.

    Raises:
        InputError: a layer does not exist, cannot be narrowed, or would grow.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, PRUNABLE)}
    for name, (inputs, outputs) in pruned.items():
        if name not in layers:
            raise InputError(f"model.pruned: the model has no layer {name!r}", nearest(name, layers))
        module = layers[name]
        was = layer_widths(module)
        now = (was[0] if inputs is None else inputs, was[1] if outputs is None else outputs)
        if not all(1 <= n <= w for n, w in zip(now, was, strict=True)):
            raise InputError(f"model.pruned: {name} is {list(now)}", f"expected 1 to {list(was)} inputs and outputs")
        _narrow_layer(name, module, *now)
    return model


def _narrow_layer(name: str, module: nn.Module, inputs: int, outputs: int) -> None:
    if isinstance(module, CONVOLUTIONS):
        if module.groups == module.in_channels == module.out_channels and inputs == outputs:  # stays depthwise
            module.groups = inputs
        if inputs % module.groups or outputs % module.groups:
            raise InputError(f"model.pruned: {name} is {[inputs, outputs]}", f"expected multiples of {module.groups}")
        module.weight = _leading_slice(module.weight, outputs, inputs // module.groups)
        module.in_channels, module.out_channels = inputs, outputs
    elif isinstance(module, nn.Linear):
        module.weight = _leading_slice(module.weight, outputs, inputs)
        module.in_features, module.out_features = inputs, outputs
    elif isinstance(module, _BatchNorm):
        module.num_features = outputs
        if module.weight is not None:
            module.weight = _leading_slice(module.weight, outputs)
        if module.running_mean is not None and module.running_var is not None:
            module.running_mean = module.running_mean[:outputs].clone()
            module.running_var = module.running_var[:outputs].clone()
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = (outputs,)
        if module.weight is not None:
            module.weight = _leading_slice(module.weight, outputs)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = outputs
        module.weight = _leading_slice(module.weight, outputs)
    bias = getattr(module, "bias", None)
    if isinstance(bias, nn.Parameter):
        module.bias = _leading_slice(bias, outputs)


def _leading_slice(tensor: Tensor, *sides: int) -> nn.Parameter:
    """The first `sides` of the leading dimensions, so that the initialisation's values are kept."""
    cut = tensor.detach()[tuple(slice(side) for side in sides)].clone()
    return nn.Parameter(cut, requires_grad=tensor.requires_grad)
