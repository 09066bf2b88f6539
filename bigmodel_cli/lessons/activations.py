"""Lesson: the curves between the layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bigmodel_cli.core.registry import lessons
from bigmodel_cli.lessons.lesson import Result
from bigmodel_cli.models.layers.activations import Activation, activation

NAMES: tuple[Activation, ...] = ("sigmoid", "tanh", "relu", "gelu")


@lessons.register(
    order=17,
    formula="sigmoid(x) = 1 / (1 + e^-x);  tanh(x);  ReLU(x) = max(0, x);  GELU(x) = x P(N(0, 1) <= x)",
    page="docs/from-zero.md#4-forward",
    more="bigmodel train mlp --set model.activation=gelu",
)
def activations() -> Result:
    """Draw sigmoid, tanh, ReLU and GELU with their slopes: where the slope is 0, nothing is learnt."""
    curves: dict[str, tuple[Tensor, Tensor]] = {}
    rows = []
    x = torch.linspace(-6, 6, 241)
    for name in NAMES:
        point = x.clone().requires_grad_()
        y = activation(name)(point)
        (slope,) = torch.autograd.grad(y.sum(), point)
        curves[name] = (y.detach(), slope)
        values = [f"{float(slope[(x - at).abs().argmin()]):.3f}" for at in (-4.0, 1.0, 4.0)]
        rows.append((name, f"{y.min():.2f} to {y.max():.2f}", f"{slope.max():.2f}", *values))

    def draw(axes: Any) -> None:
        for panel, (name, (y, slope)) in zip(axes.flat, curves.items(), strict=True):
            panel.plot(x, y, label="value")
            panel.plot(x, slope, ls="--", label="slope")
            panel.set(title=name, ylim=(-1.3, 2.5))
            panel.legend(frameon=False)

    says = [
        "sigmoid's slope is at most 0.25: through ten layers at most 0.25^10, a millionth",
        "ReLU's is 1 for every positive input, and 0 for every negative one",
    ]
    heads = ("activation", "values on -6 to 6", "largest slope", "slope at -4", "at 1", "at 4")
    return Result(says, heads, rows, draw, (1, 4), (2.8, 2.6))
