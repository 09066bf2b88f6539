"""Lesson: a hidden layer bends the line."""

from __future__ import annotations

import torch
from torch import nn

from bigmodel_cli.core.registry import lessons
from bigmodel_cli.lessons.lesson import Result
from bigmodel_cli.lessons.logic_gates import GATES, POINTS, learn, regions


@lessons.register(
    order=10,
    formula="y = W2 activation(W1 x + b1) + b2 (Rumelhart, Hinton and Williams 1986)",
    page="docs/from-zero.md#4-forward",
    more="bigmodel train mlp --set 'model.hidden=[10,10]'",
)
def mlp() -> Result:
    """Solve XOR with a hidden layer: two lines instead of one."""
    models: dict[str, nn.Module] = {}
    rows, right = [], {}
    for hidden, activation in ((0, "-"), (2, "tanh"), (8, "relu")):
        torch.manual_seed(3)
        name = f"XOR with {hidden or 'none'} hidden"
        act = nn.Tanh() if activation == "tanh" else nn.ReLU()
        models[name] = nn.Sequential(nn.Linear(2, hidden), act, nn.Linear(hidden, 1)) if hidden else nn.Linear(2, 1)
        right[name] = learn(models[name], GATES["XOR"])
        count = sum(p.numel() for p in models[name].parameters())
        rows.append((str(hidden), activation, str(count), f"{right[name]} of {len(POINTS)}"))
    says = [
        "each hidden unit draws a line of its own; the output combines them",
        "without an activation between them, two layers would be one: W2 W1 x is again a weighted sum",
    ]
    heads = ("hidden units", "activation", "parameters", "right")
    return Result(says, heads, rows, lambda axes: regions(axes, models), (1, 3), (2.8, 2.8), {"right": right})
