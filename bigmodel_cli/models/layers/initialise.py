"""Initial weights: random schemes, and the zeros of a new head."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
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


def zero_head(model: nn.Module, head: str) -> None:
    """Zero the last layer in `head`, so that a new classifier gives every class the same probability.

    Its first loss is then ln K for K classes, and the first gradients point at the classes instead of undoing a
    random guess. A convolution gets a bias of one: SqueezeNet's is followed by a ReLU, which passes no gradient at 0.
    Of a list of heads each is one, also of a list in it.
    """
    for part in _parts(model.get_submodule(head)):
        layers = [m for m in part.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
        for last in layers[-1:]:
            with torch.no_grad():
                last.weight.zero_()
                if last.bias is not None:
                    last.bias.fill_(1.0 if isinstance(last, nn.Conv2d) else 0.0)


def _parts(head: nn.Module) -> Iterator[nn.Module]:
    if isinstance(head, nn.ModuleList):
        for part in head:
            yield from _parts(part)
    else:
        yield head
