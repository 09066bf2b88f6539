"""Lesson: the shortcut that made depth work."""

from __future__ import annotations

from typing import Any

import torch

from bigmodel_cli.core.registry import lessons, models, optimizers
from bigmodel_cli.lessons.lesson import SPEC, Result, accuracy, batches, fit, normalized, percent

STEPS, DEPTHS = 40, (8, 32)


@lessons.register(
    order=13,
    formula="y = F(x) + x (He et al. 2015)",
    page="docs/resnet.md",
    more="bigmodel study recipes/image/resnet-paper/short.yaml --dry-run",
)
def resnet() -> Result:
    """Train plain and residual networks of 8 and 32 layers: the deep plain one hardly learns."""
    images, labels = normalized()
    curves: dict[str, list[float]] = {}
    rows = []
    for kind in ("plain", "resnet"):
        for depth in DEPTHS:
            torch.manual_seed(0)
            name = f"{kind}{depth}"
            model = models.get(name)(SPEC)
            optimizer = optimizers.get("momentum")(list(model.named_parameters()), lr=0.05)
            curves[name] = fit(model, optimizer, batches(32, STEPS, images, labels))
            tail = sum(curves[name][-5:]) / 5
            rows.append((name, f"{tail:.3f}", percent(accuracy(model, *normalized("test")))))

    def draw(axes: Any) -> None:
        for panel, kind in zip(axes, ("plain", "resnet"), strict=True):
            for depth in DEPTHS:
                panel.plot(curves[f"{kind}{depth}"], label=f"{depth} layers")
            panel.set(title=kind, xlabel="step", ylabel="training loss", ylim=(0, 3))
            panel.legend(frameon=False)

    says = [
        f"{STEPS} steps each. More layers can do all that fewer can, and yet the deep plain network trains worse",
        "the deep residual one learns: with y = F(x) + x a layer with nothing to add passes its input on",
    ]
    losses = {name: sum(curve[-5:]) / 5 for name, curve in curves.items()}
    return Result(says, ("network", "training loss", "test accuracy"), rows, draw, (1, 2), (4.0, 3.0), losses)
