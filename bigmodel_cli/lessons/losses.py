"""Lesson: what to minimise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_cli.core.registry import lessons, models, optimizers
from bigmodel_cli.lessons.lesson import SPEC, Result, accuracy, batches, fit, normalized, percent


def squared(logits: Tensor, labels: Tensor) -> Tensor:
    """1/K sum_k (z_k - [k = y])^2, averaged over the batch."""
    return (logits - nn.functional.one_hot(labels, logits.shape[1])).square().mean()


@lessons.register(
    order=18,
    formula="MSE: 1/K sum_k (z_k - [k = y])^2;  cross entropy: -log(e^(z_y) / sum_k e^(z_k))",
    page="docs/from-zero.md#5-loss-and-backward",
    more="bigmodel train mlp --loss mse",
)
def losses() -> Result:
    """Train one network with squared error and with cross entropy, and read its outputs."""
    curves, found, rows = {}, {}, []
    cross_entropy = nn.functional.cross_entropy
    for name, loss in (("mse", squared), ("cross entropy", cross_entropy)):
        torch.manual_seed(0)
        model = models.get("mlp")(SPEC, hidden=(32,))
        optimizer = optimizers.get("sgd")(list(model.named_parameters()), lr=0.1)
        fit(model, optimizer, batches(32, 150, *normalized()), loss)
        images, labels = normalized("test")
        with torch.inference_mode():
            logits = model.eval()(images[:1])[0]
        found[name] = accuracy(model, images, labels)
        told = logits if name == "mse" else logits.softmax(0)
        meaning = "scores, which sum to" if name == "mse" else "probabilities, which sum to"
        rows.append((name, percent(found[name]), f"{told[labels[0]]:.2f}", f"{meaning} {float(told.sum()):.2f}"))
    z = torch.linspace(-6, 6, 121, requires_grad=True)
    for name, value in (("mse", (z - 1) ** 2), ("cross entropy", nn.functional.softplus(-z))):
        (slope,) = torch.autograd.grad(value.sum(), z)
        curves[name] = (value.detach(), slope)

    def draw(axes: Any) -> None:
        for panel, (name, (value, slope)) in zip(axes, curves.items(), strict=True):
            panel.plot(z.detach(), value, label="loss")
            panel.plot(z.detach(), slope, ls="--", label="slope")
            panel.set(title=name, xlabel="output for the right class", ylim=(-4, 8))
            panel.legend(frameon=False)

    says = [
        "squared error pulls an output that is more than right, 3 for a wanted 1, back down",
        "cross entropy leaves it, and its outputs through the softmax are probabilities; those of MSE are only scores",
    ]
    heads = ("loss", "test accuracy", "output for the right class", "ten outputs of one image")
    return Result(says, heads, rows, draw, (1, 2), (4.0, 3.0), found)
