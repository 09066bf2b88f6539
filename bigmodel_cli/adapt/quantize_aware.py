"""Quantization-aware fine-tuning: the network learns to live with the rounding it will meet in int8."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import methods
from bigmodel_cli.core.types import Adapted, Start


@methods.register("qat", lr=1e-4)
def qat(start: Start, *, bits: Literal[4, 8] = 8) -> Adapted:
    """Everything trains, the weights rounded to `bits` a row and the inputs of each layer to 8 (Jacob et al. 2017).

    The grid is the one that ``bigmodel compress --method int8`` uses, so little is lost in it afterwards.
    Whatever loads the checkpoint gets the rounded weights.

    Raises:
        InputError: the model has no convolution and no linear layer.
    """
    from bigmodel_cli.models.adapters.lora import store_method_state
    from bigmodel_cli.models.quantization.fake_quant import fake_quantize_inputs, fake_quantize_weights

    # Subclasses of Linear hide inside attention, which reads their weight and never calls them.
    layers = {
        name: module
        for name, module in start.model.named_modules()
        if isinstance(module, (nn.Conv1d, nn.Conv2d)) or type(module) is nn.Linear
    }
    if not layers:
        raise InputError("qat: the model has no convolution and no linear layer", "expected one to round")
    spans = store_method_state(
        start.model, {name: torch.zeros(2, device=next(m.parameters()).device) for name, m in layers.items()}
    )
    for name, module in layers.items():
        fake_quantize_weights(module, 2 ** (bits - 1) - 1)
        fake_quantize_inputs(module, spans[name])
    return Adapted()
