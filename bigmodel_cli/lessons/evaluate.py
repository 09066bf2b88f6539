"""Lesson: how good it is, and how sure that is."""

from __future__ import annotations

from math import sqrt
from typing import Any

import torch

from bigmodel_cli.core.registry import lessons, models, optimizers
from bigmodel_cli.lessons.lesson import SPEC, Result, batches, fit, normalized, percent


def wilson(right: int, count: int) -> tuple[float, float]:
    """The 95% interval of a share (Wilson 1927)."""
    z, share = 1.96, right / count
    middle, half = share + z * z / (2 * count), z * sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return (middle - half) / (1 + z * z / count), (middle + half) / (1 + z * z / count)


def _ink(wrong: torch.Tensor, i: int, j: int) -> str:
    return "white" if wrong[i, j] > 0.6 * wrong.max() else "black"


@lessons.register(
    order=7,
    formula="accuracy = right / all, with its 95% interval",
    page="docs/from-zero.md#7-evaluate",
    more="bigmodel eval RUN --split test",
)
def evaluate() -> Result:
    """Measure on images that training never saw, with an interval, and see which digits are mixed up."""
    model = models.get("mlp")(SPEC, hidden=(32,))
    fit(model, optimizers.get("adamw")(list(model.named_parameters()), lr=3e-3), batches(64, 120, *normalized()))
    rows, confusion = [], torch.zeros(10, 10, dtype=torch.int64)
    found: dict[str, float] = {}
    for split in ("train", "test"):
        images, labels = normalized(split)
        with torch.inference_mode():
            guess = model.eval()(images).argmax(1)
        right = int((guess == labels).sum())
        low, high = wilson(right, len(labels))
        found[split] = right / len(labels)
        rows.append((split, f"{right:,} of {len(labels):,}", percent(found[split]), f"{low:.1%} to {high:.1%}"))
        if split == "test":
            confusion.index_put_((labels, guess), torch.ones_like(labels), accumulate=True)
    wrong = confusion.clone().fill_diagonal_(0)
    worst = int(wrong.argmax())

    def draw(axes: Any) -> None:
        axes.imshow(wrong, cmap="Reds")
        for i in range(10):
            for j in range(10):
                axes.text(
                    j, i, int(confusion[i, j]) or "", ha="center", va="center", fontsize=8, color=_ink(wrong, i, j)
                )
        axes.set(xlabel="predicted", ylabel="true", xticks=range(10), yticks=range(10), title="test images")
        axes.grid(visible=False)

    says = [
        "the score on train is always the better one: test is read once, at the end",
        f"most often taken for another: {worst // 10}, {int(wrong.max())} times for {worst % 10}",
    ]
    return Result(says, ("split", "right", "accuracy", "95% interval"), rows, draw, size=(5.0, 4.5), values=found)
