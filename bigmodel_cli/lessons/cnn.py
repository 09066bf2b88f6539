"""Lesson: a filter that slides over the picture finds a stroke wherever it is."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bigmodel_cli.core.registry import lessons, models, optimizers
from bigmodel_cli.lessons.lesson import SPEC, Result, accuracy, batches, fit, normalized, percent


@lessons.register(
    order=11,
    formula="y[i, j] = sum over a, b of w[a, b] x[i + a, j + b]: one small filter for every place (LeCun et al. 1989)",
    page="docs/from-zero.md#4-forward",
    more="bigmodel train cnn",
)
def cnn() -> Result:
    """Train a CNN and an MLP on digits, then move the digits by a pixel and test again."""
    images, labels = normalized()
    test_images, test_labels = normalized("test")
    moved = torch.roll(test_images, 1, dims=3)
    rows, found = [], {}
    filters = torch.zeros(10, 1, 5, 5)
    for name, options in (("mlp", {"hidden": (64,)}), ("cnn", {})):
        torch.manual_seed(0)
        model: nn.Module = models.get(name)(SPEC, **options)
        fit(model, optimizers.get("adamw")(list(model.named_parameters()), lr=3e-3), batches(64, 150, images, labels))
        found[name] = (accuracy(model, test_images, test_labels), accuracy(model, moved, test_labels))
        rows.append((name, f"{sum(p.numel() for p in model.parameters()):,}", *map(percent, found[name])))
        if name == "cnn":
            filters = model.get_submodule("conv1").weight.detach()  # type: ignore[operator, union-attr, assignment]

    def draw(axes: Any) -> None:
        for i, panel in enumerate(axes.flat):
            panel.imshow(filters[i, 0], cmap="coolwarm", vmin=-1, vmax=1)
            panel.set(title=f"filter {i + 1}", xticks=[], yticks=[])

    says = [
        "the MLP has learnt strokes at their places; moved by one pixel, they are new to it",
        "the CNN's filters are the same everywhere, and pooling forgives a pixel",
    ]
    heads = ("network", "parameters", "test accuracy", "moved by 1 pixel")
    return Result(says, heads, rows, draw, (2, 5), (1.5, 1.6), found)
