"""Augmentation of whole batches, on their device; each sample's randomness depends on (seed, epoch, index) alone.

So neither the order, nor the batch a sample is in, nor the number of workers or
ranks changes what it looks like. Shapes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from bigmodel_cli.core.keyed_random import uniform
from bigmodel_cli.core.registry import augments
from bigmodel_cli.core.types import SampleKey

Augment = Callable[[Tensor, SampleKey], Tensor]
"""pictures (B,C,H,W) uint8 or float and the key of the batch -> pictures (B,C,H,W)."""

Pixels = Annotated[int, Field(ge=0, le=64)]


def _integers(key: SampleKey, stream: int, low: int, high: int) -> Tensor:
    """(B,) int64 in [low, high]."""
    return (uniform(key, stream) * (high - low + 1)).long() + low


@augments.register(changes=False)
def none() -> Augment:
    """Pictures as they are."""
    return lambda images, key: images


@augments.register()
def shift(*, pixels: Pixels = 2) -> Augment:
    """Move each picture by up to `pixels` in both directions; what comes in is zero."""

    def apply(images: Tensor, key: SampleKey) -> Tensor:
        return _crop(images, pixels, key)

    return apply


@augments.register()
def crop_flip(*, pixels: Pixels = 4, flip: bool = True) -> Augment:
    """Shift by up to `pixels` and, with `flip`, mirror half of the pictures: CIFAR's standard (He et al. 2015)."""

    def apply(images: Tensor, key: SampleKey) -> Tensor:
        images = _crop(images, pixels, key)
        if flip:
            mirrored = (uniform(key, 2) < 0.5).view(-1, 1, 1, 1)
            images = torch.where(mirrored, images.flip(3), images)
        return images

    return apply


@augments.register()
def affine(
    *,
    degrees: Annotated[float, Field(ge=0, le=180)] = 10.0,
    translate: Annotated[float, Field(ge=0, le=1)] = 0.1,
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.1,
) -> Augment:
    """Turn by up to `degrees`, move by up to `translate` of the side, scale by up to 1 +- `scale`."""

    def apply(images: Tensor, key: SampleKey) -> Tensor:
        u = [uniform(key, stream) * 2 - 1 for stream in range(4)]
        angle, size = u[0] * math.radians(degrees), 1 + u[1] * scale
        cos, sin = torch.cos(angle) / size, torch.sin(angle) / size
        tall = images.shape[2] / images.shape[3]  # the grid counts in half sides: without this a turn would shear
        rows = [cos, -sin * tall, u[2] * 2 * translate, sin / tall, cos, u[3] * 2 * translate]
        theta = torch.stack(rows, 1).view(-1, 2, 3)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        return F.grid_sample(images.float(), grid, align_corners=False)

    return apply


@augments.register()
def erase(*, size: Annotated[int, Field(gt=0)] = 8, pixels: Pixels = 0, flip: bool = False) -> Augment:
    """Crop and flip as ``crop_flip``, then blank a square of `size` pixels somewhere (Cutout, DeVries 2017)."""
    before = crop_flip(pixels=pixels, flip=flip)

    def apply(images: Tensor, key: SampleKey) -> Tensor:
        images = before(images, key)
        inside = torch.ones((), dtype=torch.bool, device=images.device)
        for stream, side, shape in ((3, images.shape[2], (1, 1, -1, 1)), (4, images.shape[3], (1, 1, 1, -1))):
            centre = _integers(key, stream, 0, side - 1).view(-1, 1, 1, 1)
            distance = torch.arange(side, device=images.device).view(shape) - centre
            inside = inside & (distance >= -(size // 2)) & (distance < size - size // 2)
        return images.masked_fill(inside, 0)

    return apply


def _crop(images: Tensor, pixels: int, key: SampleKey) -> Tensor:
    """Each picture's own window of the zero-padded picture, in one gather."""
    if not pixels:
        return images
    b, _, h, w = images.shape
    padded = F.pad(images, (pixels,) * 4)
    rows = torch.arange(h, device=images.device) + _integers(key, 0, 0, 2 * pixels)[:, None]
    columns = torch.arange(w, device=images.device) + _integers(key, 1, 0, 2 * pixels)[:, None]
    sample = torch.arange(b, device=images.device)
    return padded[sample[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
