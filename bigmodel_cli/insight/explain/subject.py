"""What is explained: one image, a model and the score of one of its outputs. Shapes: S inputs, C,H,W an image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BATCH_ELEMENTS = 1 << 21
"""The most elements of a batch of variants of the image."""


@dataclass(frozen=True)
class Subject:
    """`score` maps outputs (S,K) to the explained score (S,), such as the log-probability of a class.

    `image` (C,H,W) is prepared; `black` is an image of no light, prepared in the same way. `steps` are those of an
    integral.
    """

    model: nn.Module
    image: Tensor
    answer: int
    score: Callable[[Tensor], Tensor]
    black: Tensor
    steps: int = 32

    def scores(self, images: Tensor) -> Tensor:
        """The score of each image (S,C,H,W), in batches that fit."""
        size = max(1, BATCH_ELEMENTS // self.image.numel())
        return torch.cat([self.score(self.model(part)) for part in images.split(size)])

    def with_model(self, model: nn.Module) -> Subject:
        return Subject(model, self.image, self.answer, self.score, self.black, self.steps)


def smooth(heat: Tensor, share: float = 0.03) -> Tensor:
    """(H,W) blurred by a Gaussian with a deviation of `share` of the shorter side, so that a person can read it."""
    sigma = share * min(heat.shape)
    if sigma < 0.5:
        return heat
    radius = min(round(3 * sigma), min(heat.shape) - 1)
    at = torch.arange(-radius, radius + 1, dtype=heat.dtype, device=heat.device)
    weights = torch.exp(-0.5 * (at / sigma) ** 2)
    weights = weights / weights.sum()
    x = F.pad(heat[None, None], [radius] * 4, mode="reflect")
    return F.conv2d(F.conv2d(x, weights.view(1, 1, 1, -1)), weights.view(1, 1, -1, 1))[0, 0]


def enlarged(heat: Tensor, size: tuple[int, int]) -> Tensor:
    """A coarse map (h,w) at the size (H,W) of the image."""
    mode = "bicubic" if min(heat.shape) > 1 else "nearest"
    return F.interpolate(heat[None, None], size, mode=mode)[0, 0]
