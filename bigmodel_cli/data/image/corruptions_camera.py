"""Corruptions of the camera: noise of the sensor, and blur. See :mod:`bigmodel_cli.data.image.corrupted`."""

from __future__ import annotations

import torch
from torch import Tensor

from bigmodel_cli.core.registry import corruptions
from bigmodel_cli.data.image.corrupted import (
    displaced,
    filtered,
    gaussian_blur,
    motion_kernel,
    strength,
    zoomed,
)


@corruptions.register(order=1)
def gaussian_noise(x: Tensor, severity: int, generator: torch.Generator, small: bool) -> Tensor:
    """Noise of a sensor in low light."""
    sigma = strength(severity, small, (0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38))
    return x + sigma * torch.randn(x.shape, generator=generator)


@corruptions.register(order=2)
def shot_noise(x: Tensor, severity: int, generator: torch.Generator, small: bool) -> Tensor:
    """Noise of few photons, which is stronger where it is bright."""
    photons = strength(severity, small, (500, 250, 100, 75, 50), (60, 25, 12, 5, 3))
    return torch.poisson(x.clamp(0, 1) * photons, generator=generator) / photons


@corruptions.register(order=3)
def impulse_noise(x: Tensor, severity: int, generator: torch.Generator, small: bool) -> Tensor:
    """Single values that are black or white."""
    share = strength(severity, small, (0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27))
    hit = torch.rand(x.shape, generator=generator) < share
    return torch.where(hit, (torch.rand(x.shape, generator=generator) < 0.5).float(), x)


@corruptions.register(order=4)
def defocus_blur(x: Tensor, severity: int, generator: torch.Generator, small: bool) -> Tensor:
    """A lens out of focus: the mean over a disk."""
    photos = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))
    radius, soft = strength(severity, small, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)), photos)
    reach = max(2, round(radius) + 1)
    at = torch.arange(-reach, reach + 1, dtype=torch.float32)
    disk = (at[:, None] ** 2 + at[None] ** 2 <= radius**2).float()[None, None]
    disk = gaussian_blur(disk, soft)[0, 0]
    return filtered(x, disk / disk.sum())


@corruptions.register(order=5)
def glass_blur(x: Tensor, severity: int, generator: torch.Generator, small: bool) -> Tensor:
    """Frosted glass: neighbouring pixels change places, between two blurs.

    The paper swaps pixels one after another; here all are displaced at once, once an iteration.
    """
    of_small = ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))
    sigma, reach, times = strength(
        severity, small, of_small, ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))
    )
    x = gaussian_blur(x, sigma)
    for _ in range(times):
        shape = x.shape[2:]
        dx, dy = (torch.randint(-reach, reach + 1, shape, generator=generator).float() for _ in range(2))
        x = displaced(x, dx, dy)
    return gaussian_blur(x, sigma)


@corruptions.register(order=6)
def motion_blur(x: Tensor, severity: int, generator: torch.Generator, small: bool) -> Tensor:
    """A camera that moves in one direction."""
    photos = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))
    radius, sigma = strength(severity, small, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)), photos)
    degrees = float(torch.rand(1, generator=generator)) * 90 - 45
    return filtered(x, motion_kernel(radius, sigma, degrees))


@corruptions.register(order=7)
def zoom_blur(x: Tensor, severity: int, generator: torch.Generator, small: bool) -> Tensor:
    """A camera that moves towards its object: the mean over several zooms."""
    of_small = ((0.06, 0.01), (0.11, 0.01), (0.16, 0.01), (0.21, 0.01), (0.26, 0.01))
    photos = ((0.11, 0.01), (0.16, 0.01), (0.21, 0.02), (0.26, 0.02), (0.33, 0.03))
    end, step = strength(severity, small, of_small, photos)
    factors = [1 + step * i for i in range(1, int(end / step))]
    return (x + sum(zoomed(x, f) for f in factors)) / (len(factors) + 1)
