"""Lesson: a picture as a sentence of patches."""

from __future__ import annotations

from typing import Any

import torch

from bigmodel_cli.core.registry import lessons, models, optimizers
from bigmodel_cli.lessons.lesson import SPEC, Result, accuracy, batches, fit, normalized, percent


@lessons.register(
    order=16,
    formula="tokens = patches W + positions; then a transformer (Dosovitskiy et al. 2020)",
    page="docs/images.md",
    more="bigmodel train vit",
)
def vit() -> Result:
    """Cut digits into 2x2 patches, and train a transformer that reads them as words."""
    images, labels = normalized()
    rows, found = [], {}
    curves: dict[str, list[float]] = {}
    for name, options in (("cnn", {}), ("vit", {"width": 64, "depth": 3, "heads": 4})):
        torch.manual_seed(0)
        model = models.get(name)(SPEC, **options)
        optimizer = optimizers.get("adamw")(list(model.named_parameters()), lr=2e-3)
        curves[name] = fit(model, optimizer, batches(64, 120, images, labels))
        found[name] = accuracy(model, *normalized("test"))
        rows.append((name, f"{sum(p.numel() for p in model.parameters()):,}", percent(found[name])))
    patches = images[0, 0].unfold(0, 2, 2).unfold(1, 2, 2)  # (4,4,2,2)

    def draw(axes: Any) -> None:
        axes[0].imshow(images[0, 0], cmap="gray_r")
        axes[0].set(title="the picture", xticks=[], yticks=[])
        gapped = torch.full((11, 11), float("nan"))
        for i in range(4):
            for j in range(4):
                gapped[3 * i : 3 * i + 2, 3 * j : 3 * j + 2] = patches[i, j]
        axes[1].imshow(gapped, cmap="gray_r")
        axes[1].set(title="its 16 tokens", xticks=[], yticks=[])
        axes[1].grid(visible=False)
        for name, curve in curves.items():
            axes[2].plot(curve, label=name)
        axes[2].set(xlabel="step", ylabel="training loss")
        axes[2].legend(frameon=False)

    says = [
        "a transformer knows nothing of pictures: which patches are neighbours, it must learn from the positions",
        "with few images the CNN, which has that built in, learns faster; with millions the transformer catches up",
    ]
    return Result(says, ("network", "parameters", "test accuracy"), rows, draw, (1, 3), (3.0, 2.8), found)
