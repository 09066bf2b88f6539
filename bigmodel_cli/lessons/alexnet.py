"""Lesson: what made a deep network of 2012 trainable."""

from __future__ import annotations

from typing import Any, Literal

import torch

from bigmodel_cli.core.registry import lessons, models, optimizers
from bigmodel_cli.lessons.lesson import SPEC, Result, accuracy, batches, fit, normalized, percent
from bigmodel_cli.models.layers.activations import Activation
from bigmodel_cli.models.layers.initialise import initialise

STEPS = 30
STARTS: dict[Activation, Literal["kaiming", "xavier"]] = {"sigmoid": "xavier", "tanh": "xavier", "relu": "kaiming"}


@lessons.register(
    order=12,
    formula="ReLU(x) = max(0, x), which does not saturate (Krizhevsky, Sutskever and Hinton 2012, figure 1)",
    page="docs/from-zero.md#4-forward",
    more="bigmodel train alexnet",
)
def alexnet() -> Result:
    """Train AlexNet, sized for small images, with the sigmoid of older networks, with tanh and with ReLU."""
    images, labels = normalized()
    curves, found, size = {}, {}, 0
    for activation, start in STARTS.items():
        torch.manual_seed(0)
        model = models.get("alexnet")(SPEC, activation=activation)
        initialise(model, start)
        size = sum(p.numel() for p in model.parameters())
        optimizer = optimizers.get("adamw")(list(model.named_parameters()), lr=3e-4)
        curves[activation] = fit(model, optimizer, batches(32, STEPS, images, labels))
        found[activation] = accuracy(model, *normalized("test"))
    rows = [(name, f"{sum(curve[-5:]) / 5:.3f}", percent(found[name])) for name, curve in curves.items()]

    def draw(axes: Any) -> None:
        for name, curve in curves.items():
            axes.plot(curve, label=name)
        axes.set(xlabel="step", ylabel="training loss")
        axes.legend(frameon=False)

    says = [
        f"five convolutions and three linear layers, {size / 1e6:.1f} million parameters, {STEPS} steps",
        "eight layers deep, sigmoid's gradient does not arrive; on ImageNet, ReLU was six times as fast as tanh",
        "dropout switches half of the linear units off at random in training, so that none relies on another",
    ]
    return Result(says, ("activation", "loss, last 5 steps", "test accuracy"), rows, draw, values={"accuracy": found})
