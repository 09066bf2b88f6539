"""Activations by name."""

from __future__ import annotations

from typing import Literal

from torch import nn

Activation = Literal["sigmoid", "tanh", "relu", "gelu", "silu"]


def activation(name: Activation, overwrite: bool = False) -> nn.Module:
    """A new activation module, elementwise:

    - sigmoid: 1 / (1 + exp(-x))
    - tanh: (exp(x) - exp(-x)) / (exp(x) + exp(-x))
    - relu: max(0, x) (Nair and Hinton 2010)
    - gelu: x * P(N(0, 1) <= x) (Hendrycks and Gimpel 2016)
    - silu: x * sigmoid(x) (Elfwing et al. 2017)

    One module serves one call: quantization observes each separately. With `overwrite`, relu may
    write over its input: for where nothing else reads that, in the backward pass either, as after
    BatchNorm or a sum. It saves memory, and the time to go through it.
    """
    if name == "relu" and overwrite:
        return nn.ReLU(inplace=True)
    return {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}[name]()
