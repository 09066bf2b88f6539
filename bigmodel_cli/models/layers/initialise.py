"""Random initialisation."""

from __future__ import annotations

from typing import Literal

from torch import nn


def initialise(model: nn.Module, scheme: Literal["default", "kaiming", "xavier"]) -> None:
    """Reinitialise the weights of every linear and convolution layer, and zero the biases.

    - kaiming: N(0, 2 / fan_out), which preserves the gradients' variance through ReLU (He et al. 2015)
    - xavier: U(+-sqrt(6 / (fan_in + fan_out))), for tanh and sigmoid (Glorot and Bengio 2010)
    - default: keep the model's own initialisation
    """
    if scheme == "default":
        return
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            if scheme == "kaiming":
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            else:
                nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
