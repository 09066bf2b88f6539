"""Lesson: pixels before and after normalization."""

from __future__ import annotations

from typing import Any

from bigmodel_cli.core.registry import lessons
from bigmodel_cli.lessons.lesson import Result, digits, normalized


@lessons.register(
    order=1,
    formula="x' = (x - mean) / std, both measured on train",
    page="docs/from-zero.md#1-preprocess",
    more="bigmodel data inspect PATH",
)
def preprocess() -> Result:
    """Centre and scale the pixels: before and after, as pictures and as numbers."""
    before, labels = digits()
    after, _ = normalized()
    rows = [
        (name, f"{x.min():.2f}", f"{x.max():.2f}", f"{x.mean():.3f}", f"{x.std():.3f}")
        for name, x in (("before", before), ("after", after))
    ]

    def draw(axes: Any) -> None:
        for i in range(4):
            for row, (name, x) in enumerate((("before", before), ("after", after))):
                panel = axes[row, i]
                shown = panel.imshow(x[i, 0], cmap="gray_r" if row == 0 else "coolwarm")
                panel.set(title=f"{labels[i]}, {name}", xticks=[], yticks=[])
                panel.figure.colorbar(shown, ax=panel, shrink=0.8)

    says = [
        f"all {len(before):,} train images share one mean, {before.mean():.3f}, and one deviation, {before.std():.3f}",
        "after: zero mean and unit deviation, so that no weight starts with a push in one direction",
        "validation, test and your own pictures are prepared with these same two numbers",
    ]
    return Result(says, ("pixels", "min", "max", "mean", "std"), rows, draw, (2, 4), (2.4, 2.0))
