"""Activations by name."""

from __future__ import annotations

from typing import Literal

from torch import nn

Activation = Literal["sigmoid", "tanh", "relu", "gelu", "silu"]


def activation(name: Activation, inplace: bool = False) -> nn.Module:
    """Build a new elementwise activation module:

    - sigmoid: 1 / (1 + exp(-x))
    - tanh: (exp(x) - exp(-x)) / (exp(x) + exp(-x))
    - relu: max(0, x) (Nair and Hinton 2010)
    - gelu: x * P(N(0, 1) <= x) (Hendrycks and Gimpel 2016)
    - silu: x * sigmoid(x) (Elfwing et al. 2017)

    Use one module per call site, because quantization observes each separately. With `inplace`, relu
    overwrites its input, which saves memory and bandwidth. That is safe only where nothing else reads
    the input, the backward pass included: after BatchNorm or a sum.
    """
    if name == "relu" and inplace:
        return nn.ReLU(inplace=True)
    return {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}[name]()
