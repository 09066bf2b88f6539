"""Corruptions of the world and of files: weather, light, shape and compression.

See :mod:`bigmodel_cli.data.image.corrupted`.
"""

from __future__ import annotations

import io

import torch
from torch import Tensor
from torch.nn import functional as F

from bigmodel_cli.core.registry import corruptions
from bigmodel_cli.data.image.corrupted import cloud, displaced, filtered, gaussian_blur, motion_kernel, strength, zoomed


@corruptions.register(order=8)
def snow(x: Tensor, severity: int, generator: torch.Generator, small: bool) -> Tensor:
    """Flakes that fall in streaks, over a picture that is brighter and paler."""
    of_small = (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95), (0.1, 0.2, 1, 0.5, 10, 4, 0.9), (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85), (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    )  # fmt: skip
    photos = (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8), (0.2, 0.3, 2, 0.5, 12, 4, 0.7), (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65), (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )  # fmt: skip
    mean, std, zoom, least, radius, sigma, kept = strength(severity, small, of_small, photos)
    flakes = zoomed((mean + std * torch.randn(1, 1, *x.shape[2:], generator=generator)), zoom)
    flakes = flakes.where(flakes >= least, torch.zeros(())).clamp(0, 1)
    degrees = -135 + 90 * float(torch.rand(1, generator=generator))
    flakes = filtered(flakes, motion_kernel(int(radius), sigma, degrees))
    pale = torch.maximum(x, x.mean(1, keepdim=True) * 1.5 + 0.5)
    return kept * x + (1 - kept) * pale + flakes + flakes.rot90(2, (2, 3))


@corruptions.register(order=9)
def frost(x: Tensor, severity: int, generator: torch.Generator, small: bool) -> Tensor:
    """Crystals of ice on the lens: ridges of noise, where the paper lays photographs of frost over the picture."""
    of_small = ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))
    kept, ice = strength(severity, small, of_small, ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)))
    ridges = 1 - (2 * cloud(x.shape[2], x.shape[3], 1.3, generator) - 1).abs()
    crystals = ridges**3 * cloud(x.shape[2], x.shape[3], 2.0, generator)
    return kept * x + ice * (crystals / crystals.max().clamp(min=1e-6))


@corruptions.register(order=10)
def fog(x: Tensor, severity: int, generator: torch.Generator, small: bool) -> Tensor:
    """Fog that is thicker in places."""
    of_small = ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))
    thick, decay = strength(severity, small, of_small, ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)))
    brightest = x.amax((1, 2, 3), keepdim=True)
    return (x + thick * cloud(x.shape[2], x.shape[3], decay, generator)) * brightest / (brightest + thick)


@corruptions.register(order=11)
def brightness(x: Tensor, severity: int, generator: torch.Generator, small: bool) -> Tensor:
    """Too much light: the value of the colours (HSV) is raised."""
    more = strength(severity, small, (0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5))
    value = x.amax(1, keepdim=True)
    return torch.where(value > 0, x / value.clamp(min=1e-6), torch.ones(())) * (value + more).clamp(max=1)


@corruptions.register(order=12)
def contrast(x: Tensor, severity: int, generator: torch.Generator, small: bool) -> Tensor:
    """Too little contrast: values move towards the mean of their channel."""
    kept = strength(severity, small, (0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05))
    mean = x.mean((2, 3), keepdim=True)
    return (x - mean) * kept + mean


@corruptions.register(order=13)
def elastic_transform(x: Tensor, severity: int, generator: torch.Generator, small: bool) -> Tensor:
    """Parts of the picture are stretched: a smooth random displacement of its pixels."""
    side = max(x.shape[2:])
    of_small = ((0.05, 0.08), (0.065, 0.08), (0.08, 0.07), (0.1, 0.06), (0.12, 0.05))
    photos = ((0.012, 0.01), (0.016, 0.012), (0.02, 0.03), (0.026, 0.03), (0.034, 0.03))
    shift, scale = strength(severity, small, of_small, photos)  # of the side: how far, and how smoothly
    moved = []
    for _ in range(2):
        noise = gaussian_blur(torch.rand(1, 1, *x.shape[2:], generator=generator) * 2 - 1, scale * side)[0, 0]
        moved.append(noise / noise.abs().max().clamp(min=1e-6) * shift * side)
    return displaced(x, moved[0], moved[1])


@corruptions.register(order=14)
def pixelate(x: Tensor, severity: int, generator: torch.Generator, small: bool) -> Tensor:
    """A picture of low resolution, enlarged."""
    share = strength(severity, small, (0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25))
    size = [max(1, int(n * share)) for n in x.shape[2:]]
    return F.interpolate(F.interpolate(x, size, mode="area"), x.shape[2:], mode="nearest")


@corruptions.register(order=15)
def jpeg_compression(x: Tensor, severity: int, generator: torch.Generator, small: bool) -> Tensor:
    """A small JPEG file."""
    from PIL import Image
    from torchvision.transforms.functional import pil_to_tensor

    quality = strength(severity, small, (80, 65, 58, 50, 40), (25, 18, 15, 10, 7))
    rows = []
    for image in (x.clamp(0, 1) * 255).round().byte():
        held = io.BytesIO()
        pixels = image[0] if len(image) == 1 else image.permute(1, 2, 0)
        Image.fromarray(pixels.contiguous().numpy()).save(held, "JPEG", quality=quality)
        rows.append(pil_to_tensor(Image.open(held)).float() / 255)
    return torch.stack(rows)
