"""Images as bad cameras, weather and compression make them, at five severities (Hendrycks and Dietterich 2019).

A registered corruption is a function (images (B,C,H,W) float32 in 0..1, severity 0..4, generator, small) -> images of
the same shape. `small` chooses the strengths that the paper sets for 32x32 images, else those for photographs.
Shapes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from bigmodel_cli.core.registry import corruptions
from bigmodel_cli.core.sources import SourceWrapper
from bigmodel_cli.core.types import Batch, Source

SEVERITIES = 5
SMALL = 64
"""The longest side of images that count as small."""
T = TypeVar("T")


class CorruptedImages(SourceWrapper):
    """The images of `source` with one corruption. Each image has noise of its own, from the seed and its index."""

    def __init__(self, source: Source, name: str, severity: int, seed: int = 0) -> None:
        super().__init__(source)
        self.corruption, self.severity, self.seed = corruptions.get(name), severity, seed

    def gather(self, indices: Tensor) -> Batch:
        batch = self.source.gather(indices)
        rows = [self._one(image, int(i)) for image, i in zip(batch["image"], batch["index"], strict=True)]
        return {**batch, "image": torch.stack(rows)}

    def _one(self, image: Tensor, index: int) -> Tensor:
        key = zlib.crc32(f"{self.seed} {self.corruption.name} {self.severity} {index}".encode())
        generator = torch.Generator().manual_seed(key)
        small = max(image.shape[1:]) <= SMALL
        changed = self.corruption(image[None].float() / 255, self.severity, generator, small)[0]
        return (changed.clamp(0, 1) * 255).round().byte()


def strength(severity: int, small: bool, of_small: Sequence[T], of_photos: Sequence[T]) -> T:
    """The parameter of a corruption at a severity, 0..4."""
    return (of_small if small else of_photos)[severity]


def gaussian_kernel(sigma: float, radius: int) -> Tensor:
    """(2 radius + 1,) weights that sum to 1."""
    x = torch.arange(-radius, radius + 1, dtype=torch.float32)
    weights = torch.exp(-0.5 * (x / max(sigma, 1e-3)) ** 2)
    return weights / weights.sum()


def filtered(x: Tensor, kernel: Tensor) -> Tensor:
    """Each channel of x (B,C,H,W) convolved with `kernel` (h,w) of odd sides, mirrored at the edges."""
    channels, (h, w) = x.shape[1], kernel.shape
    sides = [min(w // 2, x.shape[3] - 1)] * 2 + [min(h // 2, x.shape[2] - 1)] * 2
    padded = torch.nn.functional.pad(x, sides, mode="reflect")
    short = [w // 2 - sides[0]] * 2 + [h // 2 - sides[2]] * 2  # an image smaller than half the kernel
    padded = torch.nn.functional.pad(padded, short, mode="replicate") if any(short) else padded
    weight = kernel.expand(channels, 1, h, w)
    return torch.nn.functional.conv2d(padded, weight, groups=channels)


def gaussian_blur(x: Tensor, sigma: float) -> Tensor:
    radius = max(1, round(4 * sigma))
    kernel = gaussian_kernel(sigma, radius)
    return filtered(filtered(x, kernel[None, :]), kernel[:, None])


def displaced(x: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
    """x (B,C,H,W) read at its pixels moved by dx, dy (H,W) in pixels, between pixels bilinearly."""
    height, width = x.shape[2:]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    across = (columns + dx) * 2 / max(width - 1, 1) - 1
    down = (rows + dy) * 2 / max(height - 1, 1) - 1
    grid = torch.stack((across, down), -1)[None].float().expand(len(x), -1, -1, -1)
    return torch.nn.functional.grid_sample(x, grid, padding_mode="reflection", align_corners=True)


def zoomed(x: Tensor, factor: float) -> Tensor:
    """The centre of x enlarged by `factor` of at least 1, at the size of x."""
    height, width = x.shape[2:]
    h, w = max(1, round(height / factor)), max(1, round(width / factor))
    top, left = (height - h) // 2, (width - w) // 2
    part = x[:, :, top : top + h, left : left + w]
    return torch.nn.functional.interpolate(part, (height, width), mode="bilinear", align_corners=False)


def motion_kernel(radius: int, sigma: float, degrees: float) -> Tensor:
    """(2 radius + 1, 2 radius + 1) a streak from the centre in one direction, that fades by `sigma`."""
    side = 2 * radius + 1
    kernel = torch.zeros(side, side)
    angle = torch.deg2rad(torch.tensor(degrees))
    for step in range(radius + 1):
        row = radius + round(float(step * torch.sin(angle)))
        column = radius + round(float(step * torch.cos(angle)))
        kernel[row, column] += float(torch.exp(torch.tensor(-0.5 * (step / sigma) ** 2)))
    return kernel / kernel.sum()


def cloud(height: int, width: int, decay: float, generator: torch.Generator) -> Tensor:
    """(H,W) in 0..1: random noise of all scales, whose strength falls by `decay` with each halving of the scale.

    Added octaves of bilinearly enlarged noise, where the paper takes a diamond-square fractal.
    """
    total = torch.zeros(height, width)
    cells, weight = 2, 1.0
    while cells < 2 * max(height, width):
        noise = torch.rand(1, 1, cells, cells, generator=generator)
        total += weight * torch.nn.functional.interpolate(noise, (height, width), mode="bilinear")[0, 0]
        cells, weight = cells * 2, weight / decay
    low, high = total.min(), total.max()
    return (total - low) / (high - low).clamp(min=1e-6)
