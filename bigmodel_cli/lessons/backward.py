"""Lesson: gradients by layer, and where they vanish."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bigmodel_cli.core.registry import lessons, models
from bigmodel_cli.lessons.lesson import SPEC, Result, normalized

DEPTH = 10


@lessons.register(
    order=5,
    formula="dL/dx = W^T (activation'(z) * dL/dy): a product over layers; sigmoid' is at most 1/4",
    page="docs/from-zero.md#5-loss-and-backward",
    more="bigmodel train mlp --set model.activation=sigmoid --set 'model.hidden=[64,64,64,64,64,64]'",
)
def backward() -> Result:
    """Carry the error back through ten layers: with sigmoid it vanishes, with ReLU it arrives."""
    images, labels = normalized()
    norms: dict[str, list[float]] = {}
    for activation in ("sigmoid", "tanh", "relu"):
        torch.manual_seed(0)
        model = models.get("mlp")(SPEC, hidden=(64,) * DEPTH, activation=activation)
        linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
        for layer in linear:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu" if activation == "relu" else "tanh")
        nn.functional.cross_entropy(model(images[:256]), labels[:256]).backward()
        norms[activation] = [float(layer.weight.grad.norm()) for layer in linear if layer.weight.grad is not None]
    shown = (1, 3, 6, 9, DEPTH + 1)
    rows = [(name, *(f"{values[i - 1]:.1e}" for i in shown)) for name, values in norms.items()]

    def draw(axes: Any) -> None:
        for name, values in norms.items():
            axes.semilogy(range(1, len(values) + 1), values, marker="o", label=name)
        axes.set(xlabel="layer, from the input", ylabel="norm of the gradient of its weights")
        axes.legend(frameon=False)

    fall = norms["sigmoid"][-1] / norms["sigmoid"][0]
    says = [
        f"sigmoid: the first layer's gradient is {fall:,.0f} times smaller than the last one's, so it hardly learns",
        f"ReLU: {norms['relu'][-1] / norms['relu'][0]:.1f} times, about the same; its slope is 1 wherever it is on",
    ]
    return Result(says, ("activation", *(f"layer {i}" for i in shown)), rows, draw, values={"norms": norms})
