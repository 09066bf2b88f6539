"""Lesson: four optimizers on one loss surface."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_cli.core.registry import lessons, optimizers
from bigmodel_cli.lessons.lesson import Result

STEPS, START = 60, (-2.2, 1.4)
CHOICES: dict[str, dict[str, float]] = {
    "gd": {"lr": 0.09}, "sgd": {"lr": 0.09}, "momentum": {"lr": 0.03, "momentum": 0.85}, "adam": {"lr": 0.25},
}  # fmt: skip


def surface(x: Tensor, y: Tensor) -> Tensor:
    """A long valley: twenty times steeper across than along."""
    return 0.5 * x**2 + 10 * y**2


@lessons.register(
    order=6,
    formula="w <- w - lr g;  v <- m v + g, w <- w - lr v;  Adam: w <- w - lr m / (sqrt(v) + eps)",
    page="docs/from-zero.md#6-update",
    more="bigmodel optimizers",
)
def update() -> Result:
    """Walk down one valley with gradient descent, SGD, momentum and Adam."""
    paths: dict[str, Tensor] = {}
    for name, options in CHOICES.items():
        torch.manual_seed(0)
        point = nn.Parameter(torch.tensor(START))
        optimizer = optimizers.get(name)([("point", point)], **options)
        steps = [point.detach().clone()]
        for _ in range(STEPS):
            optimizer.zero_grad()
            noise = torch.randn(2) * (0.6 if name == "sgd" else 0.0)  # as a batch's gradient differs from that of all
            (surface(*point) + (noise * point).sum()).backward()
            optimizer.step()
            steps.append(point.detach().clone())
        paths[name] = torch.stack(steps)
    heights = {name: [float(surface(*p)) for p in path] for name, path in paths.items()}
    rows = [(name, *(f"{found[i]:.2g}" for i in (0, 5, 20, STEPS))) for name, found in heights.items()]

    def draw(axes: Any) -> None:
        x, y = torch.meshgrid(torch.linspace(-2.5, 1.5, 80), torch.linspace(-1.6, 1.6, 80), indexing="xy")
        for panel, (name, path) in zip(axes.flat, paths.items(), strict=True):
            panel.contour(x, y, surface(x, y), levels=[0.05, 0.3, 1, 3, 8, 16, 25], colors="0.75", linewidths=0.8)
            panel.plot(path[:, 0], path[:, 1], marker=".", lw=1)
            panel.plot(0, 0, "k*")
            panel.set(title=f"{name}: {heights[name][-1]:.2g} after {STEPS} steps")

    says = [
        "the valley is steep across and flat along: one learning rate does not fit both",
        "gd zigzags across; sgd does so with the noise of its batches; momentum averages the zigzag away",
        "adam scales each coordinate by its own gradients: the valley is as steep one way as the other",
    ]
    heads = ("optimizer", "loss at the start", "after 5 steps", "20", str(STEPS))
    return Result(says, heads, rows, draw, (2, 2), (4.2, 3.0), {"heights": heights})
