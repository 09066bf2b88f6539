"""Test-time augmentation: the mean output over an image and its horizontal flip."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.types import Task


class FlipTTA(nn.Module):
    """The mean output of `model` over images and their horizontal flips: (B,C,H,W) -> (B,K)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(torch.cat([x, x.flip(-1)])).unflatten(0, (2, -1)).mean(0)  # type: ignore[no-any-return]


def with_flip_tta(model: nn.Module, task: Task) -> nn.Module:
    """`model` with test-time augmentation, which doubles its work.

    Raises:
        InputError: the inputs of `task` are not images.
    """
    if [x.dim() for x in task.example(1)] != [4]:
        raise InputError(f"--tta: {task.name.replace('_', ' ')}", "expected a model of images")
    return FlipTTA(model)
