"""Lesson: a batch through the layers of a network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bigmodel_cli.core.registry import lessons, models
from bigmodel_cli.lessons.lesson import SPEC, Result, normalized


@lessons.register(
    order=4,
    formula="y = activation(W x + b), layer after layer, down to one logit a class",
    page="docs/from-zero.md#4-forward",
    more="bigmodel models cnn",
)
def forward() -> Result:
    """Follow a batch through a convolutional network: its shape and its values after each layer."""
    model = models.get("cnn")(SPEC)
    rows: list[tuple[str, ...]] = []
    maps: dict[str, Tensor] = {}
    x = normalized()[0][:32]
    rows.append(("input", str(tuple(x.shape)), "0", f"{x.mean():.2f}", f"{x.std():.2f}", ""))
    with torch.inference_mode():
        for name, layer in model.named_children():
            x = layer(x)
            count = sum(p.numel() for p in layer.parameters())
            zeros = f"{float((x == 0).float().mean()):.0%}" if "activation" in name else ""
            rows.append((name, str(tuple(x.shape)), f"{count:,}", f"{x.mean():.2f}", f"{x.std():.2f}", zeros))
            maps[name] = x
    probabilities = x[0].softmax(0)

    def draw(axes: Any) -> None:
        first = normalized()[0][0, 0]
        for i, panel in enumerate(axes.flat):
            panel.imshow(first if i == 0 else maps["conv1"][0, i - 1], cmap="gray_r" if i == 0 else "viridis")
            panel.set(title="input" if i == 0 else f"filter {i}", xticks=[], yticks=[])

    says = [
        "convolutions keep the picture and add channels; pooling halves it; linear layers see it whole",
        f"untrained, the ten probabilities are near 0.10 each: {probabilities.min():.2f} to {probabilities.max():.2f}",
    ]
    heads = ("layer", "shape", "parameters", "mean", "std", "zeros")
    return Result(says, heads, rows, draw, (1, 6), (1.6, 1.8))
