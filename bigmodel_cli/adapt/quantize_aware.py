"""Quantization-aware fine-tuning: the network adapts to the rounding of int8 inference."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import methods
from bigmodel_cli.core.types import Adapted, Start


@methods.register("qat", lr=1e-4)
def qat(start: Start, *, bits: Literal[4, 8] = 8) -> Adapted:
    """Everything trains, weights fake-quantized to `bits` per row and layer inputs to 8 (Jacob et al. 2017).

    The rounding grid is the one used by ``bigmodel compress --method int8``, so int8 loses little afterwards.
    Loading the checkpoint returns the rounded weights.

    Raises:
        InputError: the model has no convolution or linear layer.
    """
    from bigmodel_cli.models.adapters.lora import store_method_state
    from bigmodel_cli.models.quantization.fake_quant import fake_quantize_inputs, fake_quantize_weights

    # Subclasses of Linear are skipped: torch's attention reads their weight directly and never calls them.
    layers = {
        name: module
        for name, module in start.model.named_modules()
        if isinstance(module, (nn.Conv1d, nn.Conv2d)) or type(module) is nn.Linear
    }
    if not layers:
        raise InputError("qat: the model has no convolution or linear layer", "expected at least one")
    input_ranges = store_method_state(
        start.model, {name: torch.zeros(2, device=next(m.parameters()).device) for name, m in layers.items()}
    )
    for name, module in layers.items():
        fake_quantize_weights(module, 2 ** (bits - 1) - 1)
        fake_quantize_inputs(module, input_ranges[name])
    return Adapted()
