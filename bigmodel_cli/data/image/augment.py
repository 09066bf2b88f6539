"""Batched augmentation on the device. Each sample's randomness depends only on (seed, epoch, index).

So the result depends neither on the order of samples, nor on the batch, nor on the number of
workers or ranks. Shapes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import math
from typing import Annotated, Protocol

import numpy
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from bigmodel_cli.core.keyed_random import uniforms
from bigmodel_cli.core.registry import augments
from bigmodel_cli.core.types import SampleKey

Size = tuple[int, int] | None


class Augment(Protocol):
    """images (B,C,H,W) uint8 and the batch's key -> images (B,C,H',W'), uint8 or float in 0..255.

    `size` is the model's (height, width), which a crop may resize to.
    """

    def __call__(self, images: Tensor, key: SampleKey, size: Size = None, /) -> Tensor: ...


Pixels = Annotated[int, Field(ge=0, le=64)]


def to_integers(values: Tensor, low: int, high: int) -> Tensor:
    """Map uniform numbers in [0, 1) to uniform int64 in [low, high]."""
    return (values * (high - low + 1)).long() + low


@augments.register(changes=False)
def none() -> Augment:
    """No augmentation."""
    return lambda images, key, size=None: images


@augments.register(kind="image")
def shift(*, pixels: Pixels = 2) -> Augment:
    """Shift each image by up to `pixels` in both directions, padding with zeros."""

    def apply(images: Tensor, key: SampleKey, size: Size = None) -> Tensor:
        return shift_and_flip(images, key, pixels, flip=False)

    return apply


@augments.register(kind="image")
def crop_flip(*, pixels: Pixels = 4, flip: bool = True) -> Augment:
    """Shift by up to `pixels` and, with `flip`, mirror half of the images: the CIFAR standard (He et al. 2015)."""

    def apply(images: Tensor, key: SampleKey, size: Size = None) -> Tensor:
        return shift_and_flip(images, key, pixels, flip)

    return apply


@augments.register(kind="image")
def affine(
    *,
    degrees: Annotated[float, Field(ge=0, le=180)] = 10.0,
    translate: Annotated[float, Field(ge=0, le=1)] = 0.1,
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.1,
) -> Augment:
    """Rotate by up to `degrees`, translate by up to `translate` of the side, scale by up to 1 +- `scale`."""

    def apply(images: Tensor, key: SampleKey, size: Size = None) -> Tensor:
        u = uniforms(key, 0, 1, 2, 3) * 2 - 1
        angle, larger = u[0] * math.radians(degrees), 1 + u[1] * scale
        cos, sin = torch.cos(angle) / larger, torch.sin(angle) / larger
        tall = images.shape[2] / images.shape[3]  # the grid's unit is half a side, so rotation must undo the aspect
        rows = [cos, -sin * tall, u[2] * 2 * translate, sin / tall, cos, u[3] * 2 * translate]
        theta = torch.stack(rows, 1).view(-1, 2, 3)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        return F.grid_sample(images.float(), grid, align_corners=False)

    return apply


@augments.register(kind="image")
def erase(*, size: Annotated[int, Field(gt=0)] = 8, pixels: Pixels = 0, flip: bool = False) -> Augment:
    """Crop and flip as `crop_flip`, then blank a random square of `size` pixels (Cutout, DeVries 2017)."""

    def apply(images: Tensor, key: SampleKey, _: Size = None) -> Tensor:
        return erase_square(shift_and_flip(images, key, pixels, flip), key, size)

    return apply


def shift_and_flip(images: Tensor, key: SampleKey, pixels: int, flip: bool) -> Tensor:
    """Crop each zero-padded image at its own offset and, with `flip`, mirror half of them."""
    if not pixels and not flip:
        return images
    u = uniforms(key, 0, 1, 2)
    if pixels:
        top, left = to_integers(u[:2], 0, 2 * pixels)
        images = crop_at(F.pad(images, (pixels,) * 4), top, left, 2 * pixels + 1)
    return flip_horizontally(images, u[2] < 0.5) if flip else images


def crop_at(padded: Tensor, top: Tensor, left: Tensor, places: int) -> Tensor:
    """(B,C,H,W) -> (B,C,H-places+1,W-places+1): crop each image at its own (top, left), (B,) int64."""
    b, c, h, w = padded.shape
    h, w = h - places + 1, w - places + 1
    n, ch, row, column = padded.stride()
    # A view of all possible windows, so that one gather copies whole rows.
    view = padded.as_strided((b, places, places, c, h, w), (n, row, column, ch, row, column))
    if padded.device.type == "cpu":  # numpy's gather is twice as fast as torch's
        return torch.from_numpy(view.numpy()[numpy.arange(b), top.numpy(), left.numpy()])
    return view[torch.arange(b, device=padded.device), top, left]


def flip_horizontally(images: Tensor, chosen: Tensor) -> Tensor:
    """Mirror the `chosen` ((B,) bool) images left to right."""
    width = images.shape[3]
    columns = torch.arange(width, device=images.device)
    source = torch.where(chosen[:, None], width - 1 - columns, columns)
    return images.gather(3, source[:, None, None, :].expand_as(images))


def erase_square(images: Tensor, key: SampleKey, size: int) -> Tensor:
    """Zero a square of `size` pixels in each image, centred anywhere in it."""
    inside = torch.ones((), dtype=torch.bool, device=images.device)
    u = uniforms(key, 3, 4)
    for values, side, shape in ((u[0], images.shape[2], (1, 1, -1, 1)), (u[1], images.shape[3], (1, 1, 1, -1))):
        centre = to_integers(values, 0, side - 1).view(-1, 1, 1, 1)
        distance = torch.arange(side, device=images.device).view(shape) - centre
        inside = inside & (distance >= -(size // 2)) & (distance < size - size // 2)
    return images.masked_fill(inside, 0)
