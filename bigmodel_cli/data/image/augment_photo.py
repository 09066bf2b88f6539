"""Augmentation for photos: random resized crops, colour jitter, policies, erasing, mixup and cutmix.

Keyed by (seed, epoch, index) like everything in data/image/augment.py. Mixing also depends on which
samples share a micro-batch, because partners come from it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from bigmodel_cli.core.device_constant import device_constant
from bigmodel_cli.core.keyed_random import uniforms
from bigmodel_cli.core.registry import augments
from bigmodel_cli.core.types import SampleKey
from bigmodel_cli.data.image.augment import Pixels, Size, erase_square, flip_horizontally, shift_and_flip

Fraction = Annotated[float, Field(ge=0, le=1)]
Alpha = Annotated[float, Field(ge=0, le=8)]
LUMA = (0.299, 0.587, 0.114)
RATIO = (3 / 4, 4 / 3)  # aspect ratio of a crop, width to height (Szegedy et al. 2015)


@dataclass(frozen=True)
class ResizedCrop:
    """See :func:`resized_crop`."""

    area: float
    flip: bool
    side: int | None

    def __call__(self, images: Tensor, key: SampleKey, size: Size = None, /) -> Tensor:
        return random_resized_crop(images, key, size if self.side is None else (self.side,) * 2, self.area, self.flip)


@augments.register(kind="image")
def resized_crop(
    *,
    area: Annotated[float, Field(gt=0, le=1)] = 0.35,
    flip: bool = True,
    side: Annotated[int, Field(ge=1)] | None = None,
) -> ResizedCrop:
    """A random crop of `area` to all of the image, 3:4 to 4:3, resized to the model's input (Szegedy et al. 2015).

    `side` resizes it to that many pixels instead. A crop shows things larger than evaluation does, so that they are as
    large as there if it has fewer pixels (Touvron et al. 2019); and a step takes less time.
    """
    return ResizedCrop(area, flip, side)


@dataclass(frozen=True)
class Strong:
    """The steps in order; see :func:`strong`."""

    steps: tuple[Callable[[Tensor, SampleKey, Size], Tensor], ...]
    mixing: Mixing | None

    def __call__(self, images: Tensor, key: SampleKey, size: Size = None, /) -> Tensor:
        for step in self.steps:
            images = step(images, key, size)
        return images


@augments.register(kind="image")
def strong(
    *,
    crop: Literal["resized", "shift", "none"] = "resized",
    area: Annotated[float, Field(gt=0, le=1)] = 0.35,
    pixels: Pixels = 4,
    flip: bool = True,
    policy: Literal["none", "trivial", "rand"] = "none",
    colour: Fraction = 0.0,
    erase: Annotated[int, Field(ge=0)] = 0,
    mixup: Alpha = 0.0,
    cutmix: Alpha = 0.0,
) -> Strong:
    """Crop and flip, then on request TrivialAugment or RandAugment, colour jitter, erase, mixup and cutmix."""
    steps: list[Callable[[Tensor, SampleKey, Size], Tensor]] = []
    if crop == "resized":
        steps.append(lambda images, key, size: random_resized_crop(images, key, size, area, flip))
    else:
        steps.append(lambda images, key, size: shift_and_flip(images, key, pixels if crop == "shift" else 0, flip))
    if policy != "none":
        steps.append(lambda images, key, size: apply_policy(images, key, policy))
    if colour:
        steps.append(lambda images, key, size: jitter_colour(images, key, colour))
    if erase:
        steps.append(lambda images, key, size: erase_square(images, key, erase))
    return Strong(tuple(steps), Mixing(mixup, cutmix) if mixup or cutmix else None)


def random_resized_crop(images: Tensor, key: SampleKey, size: Size, area: float, flip: bool) -> Tensor:
    """(B,C,H,W) -> (B,C,*size): a random crop of each image, resized (bilinear; antialiased on a CPU)."""
    height, width = images.shape[2:]
    size = size or (height, width)
    u = uniforms(key, 0, 1, 2, 3, 4)
    share = area + (1 - area) * u[0]
    ratio = torch.exp(math.log(RATIO[0]) + (math.log(RATIO[1]) - math.log(RATIO[0])) * u[1])
    tall = (height * width * share / ratio).sqrt().clamp(max=height)
    wide = (height * width * share * ratio).sqrt().clamp(max=width)
    top, left = u[2] * (height - tall), u[3] * (width - wide)
    if images.device.type == "cpu":
        images = _crop_cpu(images, (top, left, tall, wide), size)
    else:
        images = _crop_grid(images, (top, left, tall, wide), size)
    return flip_horizontally(images, u[4] < 0.5) if flip else images


def _crop_cpu(images: Tensor, places: tuple[Tensor, ...], size: tuple[int, int]) -> Tensor:
    """Resize image by image in uint8: 8 times as fast as grid_sample on the batch."""
    out = images.new_empty((*images.shape[:2], *size))
    top, left, tall, wide = (torch.stack(places).round().int()).tolist()
    for i in range(len(images)):
        h, w = max(tall[i], 1), max(wide[i], 1)
        y, x = min(top[i], images.shape[2] - h), min(left[i], images.shape[3] - w)
        window = images[i : i + 1, :, y : y + h, x : x + w]
        out[i] = F.interpolate(window, size, mode="bilinear", antialias=True)[0]
    return out


def _crop_grid(images: Tensor, places: tuple[Tensor, ...], size: tuple[int, int]) -> Tensor:
    """Crop the whole batch without a host loop. Not antialiased, which hardly matters at these scales."""
    top, left, tall, wide = places
    height, width = images.shape[2:]
    # Centre and half extent of the crop, in grid_sample's coordinates from -1 to 1.
    x, y = (2 * left + wide) / width - 1, (2 * top + tall) / height - 1
    zero = torch.zeros_like(x)
    theta = torch.stack([wide / width, zero, x, zero, tall / height, y], 1).view(-1, 2, 3)
    grid = F.affine_grid(theta, [*images.shape[:2], *size], align_corners=False)
    return F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)


def jitter_colour(images: Tensor, key: SampleKey, strength: float) -> Tensor:
    """Scale brightness, contrast and saturation by 1 +- `strength` each (Howard 2013); float in 0..255."""
    factors = 1 + strength * (2 * uniforms(key, 5, 6, 7) - 1)
    bright, contrast, saturation = (f.view(-1, 1, 1, 1) for f in factors)
    x = images.float() * bright
    x.clamp_(0, 255)
    luma = device_constant(LUMA, x.dtype, x.device).view(1, 3, 1, 1) if images.shape[1] == 3 else x.new_ones(1, 1, 1, 1)
    grey = (x * luma).sum(1, keepdim=True)
    x = torch.lerp(grey.mean((2, 3), keepdim=True), x, contrast).clamp_(0, 255)
    if images.shape[1] == 3:
        x = torch.lerp((x * luma).sum(1, keepdim=True), x, saturation).clamp_(0, 255)
    return x


def apply_policy(images: Tensor, key: SampleKey, policy: str) -> Tensor:
    """torchvision's TrivialAugment (Müller and Hutter 2021) or RandAugment (Cubuk et al. 2020), image by image.

    Each image's operations are drawn with a seed from its key; torch's global random state is restored.
    """
    operation = _policy(policy)
    seeds = (uniforms(key, 8) * (1 << 24)).long()[0].tolist()
    state = torch.get_rng_state()
    out = []
    for image, seed in zip(images.to(torch.uint8), seeds, strict=True):
        torch.default_generator.manual_seed(seed)
        out.append(operation(image))
    torch.set_rng_state(state)
    return torch.stack(out)


@functools.cache
def _policy(name: str) -> Callable[[Tensor], Tensor]:
    from torchvision.transforms import v2

    made: Any = v2.TrivialAugmentWide() if name == "trivial" else v2.RandAugment()
    return made  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Mixing:
    """mixup (Zhang et al. 2018) and cutmix (Yun et al. 2019), each with its own Beta(alpha, alpha); 0 disables one.

    The partner of an image is its successor in the micro-batch, ordered by a keyed random
    number. So partners depend on the samples in a micro-batch, but not on their order.
    With both enabled, each image draws one of the two.
    """

    mixup: float
    cutmix: float

    def __call__(self, images: Tensor, key: SampleKey) -> tuple[Tensor, Tensor, Tensor]:
        """Float (B,C,H,W) -> the mixed images, each one's partner (B,) int64 and its own weight (B,)."""
        u = uniforms(key, 9, 10, 11, 12, 13)
        order = u[0].argsort(stable=True)
        partner = torch.empty_like(order)
        partner[order] = order.roll(1)
        cut = u[1] < (0.5 if self.mixup and self.cutmix else float(self.cutmix > 0))
        share = torch.where(cut, _beta(u[2], self.cutmix), _beta(u[2], self.mixup))
        own, exact = _outside_box(images, share, u[3], u[4])
        share = torch.where(cut, exact, share)
        weight = torch.where(cut.view(-1, 1, 1, 1), own, share.view(-1, 1, 1, 1))
        return torch.lerp(images[partner], images, weight), partner, share


def _outside_box(images: Tensor, share: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """(B,1,H,W) float, 0 inside a box of about 1 - `share` of the image centred at (u, v), else 1; and its mean."""
    inside = torch.ones((), dtype=torch.bool, device=images.device)
    for centre, side, shape in ((u, images.shape[2], (1, 1, -1, 1)), (v, images.shape[3], (1, 1, 1, -1))):
        half = ((1 - share).sqrt() * side / 2).view(-1, 1, 1, 1)
        distance = torch.arange(side, device=images.device).view(shape) + 0.5 - (centre * side).view(-1, 1, 1, 1)
        inside = inside & (distance.abs() < half)
    outside = (~inside).float()
    return outside, outside.mean((1, 2, 3))


def _beta(u: Tensor, alpha: float) -> Tensor:
    """Map (B,) uniform numbers to Beta(alpha, alpha) by its inverse CDF; to 1 if alpha is 0."""
    if not alpha:
        return torch.ones_like(u)
    table = torch.from_numpy(_inverse_beta_table(alpha)).to(u.device)
    place = u * (len(table) - 1)
    low = place.long()
    return torch.lerp(table[low], table[low + 1], place - low)


@functools.cache
def _inverse_beta_table(alpha: float) -> numpy.ndarray[Any, Any]:
    from scipy.special import betaincinv

    return numpy.asarray(betaincinv(alpha, alpha, numpy.linspace(0, 1, 4097)), numpy.float32)
