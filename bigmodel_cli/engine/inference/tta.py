"""Test-time augmentation: the mean answer over an image and its mirror image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.types import Task


class Mirrored(nn.Module):
    """The mean of what `model` says of images and of their mirror images: (B,C,H,W) -> (B,K)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(torch.cat([x, x.flip(-1)])).unflatten(0, (2, -1)).mean(0)  # type: ignore[no-any-return]


def mirrored(model: nn.Module, task: Task) -> nn.Module:
    """`model` asked twice of each image.

    Raises:
        InputError: what `task` is about has no mirror image.
    """
    if [x.dim() for x in task.example(1)] != [4]:
        raise InputError(f"--tta: {task.name.replace('_', ' ')}", "expected a model of images")
    return Mirrored(model)
