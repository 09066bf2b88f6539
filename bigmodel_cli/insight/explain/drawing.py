"""Maps of evidence over pictures, as a person can read them. Shapes: C,H,W."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn import functional as F

SIDE = 320
"""The longer side of a drawn picture in pixels."""
WARM = ((0.0, (0.35, 0.0, 0.35)), (0.35, (0.85, 0.15, 0.25)), (0.7, (1.0, 0.6, 0.1)), (1.0, (1.0, 1.0, 0.55)))
COLD = ((0.0, (0.05, 0.15, 0.35)), (1.0, (0.35, 0.75, 1.0)))


def normalised(heat: Tensor) -> Tensor:
    """(H,W) in -1..1: divided by the 99.5th percentile of its absolute values."""
    size = heat.abs().flatten()
    most = size.kthvalue(max(1, round(0.995 * len(size)))).values
    most = most if float(most) > 0 else size.max().clamp(min=1e-12)
    return (heat / most).clamp(-1, 1)


def picture(pixels: Tensor) -> Tensor:
    """(C,H,W) in 0..1 -> (3,H',W') uint8, at most SIDE pixels long; small pictures are enlarged pixel by pixel."""
    shown = pixels.expand(3, -1, -1) if pixels.shape[0] != 3 else pixels
    return (_sized(shown, smoothly=max(pixels.shape[1:]) > 96).clamp(0, 1) * 255).round().byte()


def overlay(pixels: Tensor, heat: Tensor) -> Tensor:
    """The picture in grey with `heat` (H,W) over it, (3,H',W') uint8: warm for evidence, cold for evidence against."""
    grey = pixels.float().mean(0, keepdim=True).expand(3, -1, -1)
    base = _sized(grey, smoothly=max(pixels.shape[1:]) > 96) * 0.75 + 0.1
    strength = _sized(normalised(heat.float().cpu())[None], smoothly=True)[0]
    colour = torch.where(strength >= 0, _ramp(WARM, strength.clamp(min=0)), _ramp(COLD, (-strength).clamp(min=0)))
    alpha = (strength.abs() ** 0.8 * 0.85)[None]
    return ((base * (1 - alpha) + colour * alpha).clamp(0, 1) * 255).round().byte()


def _ramp(stops: tuple[tuple[float, tuple[float, float, float]], ...], at: Tensor) -> Tensor:
    """(3,H,W) the colour of each value in 0..1, between the stops linearly."""
    found = torch.zeros(3, *at.shape)
    for (x0, a), (x1, b) in itertools.pairwise(stops):
        share = ((at - x0) / (x1 - x0)).clamp(0, 1)
        part = torch.stack([a[c] + (b[c] - a[c]) * share for c in range(3)])
        found = torch.where(at >= x0, part, found)
    return found


def _sized(x: Tensor, smoothly: bool) -> Tensor:
    height, width = x.shape[1:]
    scale = SIDE / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    if not smoothly:
        return F.interpolate(x[None].float(), size, mode="nearest")[0]
    return F.interpolate(x[None].float(), size, mode="bilinear", antialias=scale < 1)[0]
