"""Lesson: what a batch is."""

from __future__ import annotations

from typing import Any

import torch

from bigmodel_cli.core.registry import lessons
from bigmodel_cli.lessons.lesson import Result, digits

BATCH = 16


@lessons.register(
    order=3,
    formula="steps per epoch = ceil(train samples / batch size)",
    page="docs/from-zero.md#3-load",
    more="bigmodel train mlp --dry-run",
)
def load() -> Result:
    """Read the data a batch at a time, in another random order each epoch."""
    images, labels = digits()
    orders = [torch.randperm(len(labels)) for _ in range(2)]
    first = orders[0][:BATCH]
    rows = [
        (f"epoch {epoch}", str(tuple(images[order[:BATCH]].shape)), " ".join(str(int(i)) for i in order[:5]) + " ...",
         " ".join(str(int(labels[i])) for i in order[:8]) + " ...")
        for epoch, order in enumerate(orders, 1)
    ]  # fmt: skip

    def draw(axes: Any) -> None:
        for panel, i in zip(axes.flat, first, strict=True):
            panel.imshow(images[i, 0], cmap="gray_r")
            panel.set(title=str(int(labels[i])), xticks=[], yticks=[])

    steps = -(-len(labels) // BATCH)
    says = [
        f"{len(labels):,} train images in batches of {BATCH}: {steps} steps make an epoch",
        "a batch is one array: (images, channels, height, width), and one label an image",
        "a random order each epoch, so that no step sees the same neighbours again",
    ]
    return Result(says, ("first batch", "shape", "images", "labels"), rows, draw, (2, 8), (1.2, 1.4))
