"""AND, OR and XOR as four points, and the regions that a network makes of the plane."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_cli.lessons.lesson import fit

POINTS = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
GATES = {
    "AND": torch.tensor([0.0, 0.0, 0.0, 1.0]),
    "OR": torch.tensor([0.0, 1.0, 1.0, 1.0]),
    "XOR": torch.tensor([0.0, 1.0, 1.0, 0.0]),
}


def learn(model: nn.Module, targets: Tensor, steps: int = 600) -> int:
    """Train `model` on the four points; returns how many it then has right."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    fit(model, optimizer, iter([(POINTS, targets[:, None])] * steps), nn.functional.binary_cross_entropy_with_logits)
    with torch.inference_mode():
        return int(((model(POINTS)[:, 0] > 0) == targets.bool()).sum())


def regions(axes: Any, found: Mapping[str, nn.Module]) -> None:
    """Draw where each network of `found` says one, and the four points."""
    side = torch.linspace(-0.5, 1.5, 120)
    x, y = torch.meshgrid(side, side, indexing="xy")
    for panel, (name, model) in zip(axes.flat, found.items(), strict=True):
        with torch.inference_mode():
            says_one = (model(torch.stack([x, y], -1).view(-1, 2)) > 0).view(120, 120).float()
        panel.contourf(x, y, says_one, levels=[-0.5, 0.5, 1.5], colors=["#f3d9d9", "#d5e5f5"])
        targets = GATES[name.split()[0]]
        panel.scatter(*POINTS.T, c=["#2b6cb0" if wanted else "#c53030" for wanted in targets], s=70)
        panel.set(title=name, xlabel="first input", ylabel="second input")
