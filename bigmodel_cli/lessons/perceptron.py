"""Lesson: what one weighted sum can and cannot do."""

from __future__ import annotations

import torch
from torch import nn

from bigmodel_cli.core.registry import lessons
from bigmodel_cli.lessons.lesson import Result
from bigmodel_cli.lessons.logic_gates import GATES, POINTS, learn, regions


@lessons.register(
    order=9,
    formula="y = 1 if w.x + b > 0 (Rosenblatt 1958); XOR has no such line (Minsky and Papert 1969)",
    page="docs/from-zero.md#4-forward",
    more="bigmodel train perceptron",
)
def perceptron() -> Result:
    """Learn AND, OR and XOR with a single unit: a straight line cannot separate XOR."""
    models, right = {}, {}
    for name, targets in GATES.items():
        torch.manual_seed(0)
        models[name] = nn.Linear(2, 1)
        right[name] = learn(models[name], targets)
    rows = [(name, " ".join(str(int(t)) for t in GATES[name]), f"{right[name]} of {len(POINTS)}") for name in GATES]
    says = [
        "AND and OR: a line has all ones on one side, and the perceptron finds it",
        "XOR: its ones lie on a diagonal. No line separates them, whatever the training: see the lesson mlp",
    ]
    return Result(
        says, ("gate", "wanted for 00 01 10 11", "right"), rows, lambda axes: regions(axes, models), (1, 3), (2.8, 2.8),
        {"right": right},
    )  # fmt: skip
