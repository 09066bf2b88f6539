"""The network that reaches 94% on CIFAR-10 with the least compute (Jordan 2024, arXiv:2404.00498).

Its first layer is fixed: it whitens 2 x 2 patches of the train split. Shapes: B batch,
C channels, H height, W width, K classes, D = 4C values in a patch.
"""

from __future__ import annotations

import itertools
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import models
from bigmodel_cli.core.types import ImageSpec
from bigmodel_cli.models.layers.activations import Activation
from bigmodel_cli.models.layers.activations import activation as act

MIN_SIDE = 16  # pixels; a 2x2 convolution and three poolings leave one
LOGIT_SCALE = 1 / 9  # from the paper's code: keeps the initial logits small
WHITENING_EPS = 5e-4  # added to the variances, since the directions of least variance are mostly noise


class Whiten(nn.Module):
    """(B, C, H, W) -> (B, 2D, H-1, W-1): project each 2 x 2 patch onto the D principal directions and their negatives.

    `directions` (2D, C, 2, 2) is a buffer: found once, by :meth:`init_from_data`, and not trained. A bias is.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        d = 4 * channels
        directions = torch.eye(d).view(d, channels, 2, 2)
        self.register_buffer("directions", torch.cat([directions, -directions]))
        self.bias = nn.Parameter(torch.zeros(2 * d))
        self.directions: Tensor

    @torch.no_grad()
    def init_from_data(self, images: Tensor) -> None:
        """Whiten patches of `images` (N, C, H, W): each direction gets a variance of one."""
        d = len(self.directions) // 2
        patches = F.unfold(images, 2).transpose(1, 2).reshape(-1, d)
        patches = patches - patches.mean(0)
        # Millions of products are summed: in fp32 the result would depend on how BLAS splits the sum.
        total = sum((part.double().T @ part.double() for part in patches.split(1 << 18)), torch.zeros(()).double())
        values, vectors = torch.linalg.eigh(total / (len(patches) - 1))
        directions = (vectors / (values + WHITENING_EPS).sqrt()).T.flip(0).view(d, -1, 2, 2)
        self.directions.copy_(torch.cat([directions, -directions]))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.directions, self.bias)


class ConvGroup(nn.Module):
    """conv, pool, norm, activation; conv, norm, activation: (B, inputs, H, W) -> (B, width, H/2, W/2)."""

    def __init__(self, inputs: int, width: int, activation: Activation) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
        self.pool = nn.MaxPool2d(2)
        self.bn1 = nn.BatchNorm2d(width)
        self.activation1 = act(activation)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.activation2 = act(activation)
        for conv in (self.conv1, self.conv2):  # the first in_channels outputs start as the identity
            nn.init.dirac_(conv.weight.data[: conv.in_channels])

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation1(self.bn1(self.pool(self.conv1(x))))
        return self.activation2(self.bn2(self.conv2(x)))  # type: ignore[no-any-return]


class Airbench(nn.Module):
    """(B, C, H, W) -> (B, K)."""

    def __init__(self, spec: ImageSpec, width: int, activation: Activation) -> None:
        super().__init__()
        self.whiten = Whiten(spec.channels)
        self.activation = act(activation)
        widths = (8 * spec.channels, width, 4 * width, 4 * width)
        self.halves = nn.Sequential(*(ConvGroup(i, o, activation) for i, o in itertools.pairwise(widths)))
        self.head = nn.Linear(4 * width, spec.num_classes, bias=False)

    def init_from_data(self, images: Tensor) -> None:
        """Called once, before training from zero, with prepared images (N, C, H, W) of the train split."""
        self.whiten.init_from_data(images)

    def forward(self, x: Tensor) -> Tensor:
        x = self.halves(self.activation(self.whiten(x)))
        return self.head(x.amax((2, 3))) * LOGIT_SCALE  # type: ignore[no-any-return]


@models.register("airbench", task="image_classification", head="head", backbone_first="halves.0.conv1")
def airbench(
    spec: ImageSpec, *, width: Annotated[int, Field(ge=1, le=4096)] = 64, activation: Activation = "gelu"
) -> nn.Module:
    """Six convolutions behind a patch-whitening layer; the fastest to train on small images.

    Raises:
        InputError: images smaller than 16 x 16.
    """
    if min(spec.height, spec.width) < MIN_SIDE:
        size = f"{spec.height}x{spec.width}"
        expected = f"expected at least {MIN_SIDE}x{MIN_SIDE}"
        raise InputError(f"airbench on {size} images", expected, "use mlp or resnet18")
    return Airbench(spec, width, activation)
