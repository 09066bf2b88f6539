"""Scattering transforms: fixed wavelet features, on which a linear layer learns quickly and with little privacy spent.

Shapes: B batch, C channels, H height, W width, J scales, L angles, K classes, S = 1 + J L + J (J - 1) / 2 L^2 features
of a channel.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import models
from bigmodel_cli.core.types import ImageSpec

REACH = 3  # standard deviations of a wavelet's envelope inside its kernel
SIGMA, FREQUENCY = 0.8, 3 / 4 * math.pi  # of the finest wavelet: Bruna and Mallat 2013
Positive = Annotated[int, Field(gt=0)]


@models.register("scatter-linear", task="image_classification", head="head", backbone_first="scattering")
def scatter_linear(
    spec: ImageSpec,
    *,
    scales: Annotated[int, Field(gt=0, le=5)] = 2,
    angles: Annotated[int, Field(gt=1, le=32)] = 8,
    groups: Positive = 27,
) -> nn.Module:
    """A linear layer on a fixed scattering transform (Tramer and Boneh 2021), made for private training.

    (B, C, H, W) -> (B, K). Each sample's features are normalised in `groups` groups, or as many as divide them.

    Raises:
        InputError: images with a side below 2 to the power of `scales`.
    """
    if min(spec.height, spec.width) < 2**scales:
        size = f"{spec.height}x{spec.width}"
        raise InputError(f"scatter-linear on {size} images", f"expected at least {2**scales} pixels a side")
    return ScatterLinear(spec, scales, angles, groups)


class ScatterLinear(nn.Module):
    """Scattering, normalisation of each sample, and the linear head."""

    fixed_backbone = True

    def __init__(self, spec: ImageSpec, scales: int, angles: int, groups: int) -> None:
        super().__init__()
        self.scattering = Scattering(scales, angles)
        channels = spec.channels * self.scattering.features
        self.norm = nn.GroupNorm(math.gcd(groups, channels), channels, affine=False)
        rows, columns = (-(-side // 2**scales) for side in (spec.height, spec.width))
        self.head = nn.Linear(channels * rows * columns, spec.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.scattering(x)).flatten(1))  # type: ignore[no-any-return]


class Scattering(nn.Module):
    """Moduli of wavelet coefficients of up to two orders, averaged: (B, C, H, W) -> (B, C S, H / 2^J, W / 2^J).

    After Bruna and Mallat 2013, "Invariant Scattering Convolution Networks", by convolutions with Morlet wavelets cut
    off at three standard deviations; borders are mirrored. A wavelet of scale j halves the map j times.
    """

    def __init__(self, scales: int, angles: int) -> None:
        super().__init__()
        self.scales, self.angles = scales, angles
        for j in range(scales):
            self.register_buffer(f"wavelets{j}", wavelets(j, angles))
            self.register_buffer(f"average{j}", average(scales - 1 - j))
        self.features = 1 + scales * angles + scales * (scales - 1) // 2 * angles**2

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        x = x.reshape(b * c, 1, h, w)
        found = [self._averaged(x, 0, 0)]
        second = []
        for j in range(self.scales):
            first = self._moduli(x, j, 2**j)
            found.append(self._averaged(first, j, j))
            for finer in range(1, self.scales - j):
                moduli = self._moduli(first.flatten(0, 1)[:, None], finer, 2**finer)
                moduli = moduli.reshape(b * c, self.angles**2, *moduli.shape[2:])
                second.append(self._averaged(moduli, j + finer, j + finer))
        whole = torch.cat((*found, *second), 1)
        return whole.reshape(b, c * self.features, *whole.shape[2:])

    def _moduli(self, x: Tensor, scale: int, stride: int) -> Tensor:
        """(N, 1, H, W) -> (N, L, H / stride, W / stride)."""
        real, imaginary = _convolve(x, self.get_buffer(f"wavelets{scale}"), stride).chunk(2, 1)
        return (real.square() + imaginary.square() + 1e-12).sqrt()

    def _averaged(self, x: Tensor, halved: int, finest: int) -> Tensor:
        """Maps that were halved `halved` times, averaged and halved to the coarsest resolution."""
        kernel, stride = self.get_buffer(f"average{finest}"), 2 ** (self.scales - halved)
        n, maps = x.shape[:2]
        y = _convolve(x.reshape(n * maps, 1, *x.shape[2:]), kernel, stride)
        return y.reshape(n, maps, *y.shape[2:])


def _convolve(x: Tensor, kernels: Tensor, stride: int) -> Tensor:
    """(N, 1, H, W) with kernels (O, 1, k, k) -> (N, O, ceil(H / stride), ceil(W / stride)), borders mirrored."""
    reach = kernels.shape[-1] // 2
    most = min(reach, min(x.shape[2:]) - 1)  # a mirror cannot show more than there is
    x = F.pad(x, (most,) * 4, mode="reflect")
    if most < reach:
        x = F.pad(x, (reach - most,) * 4, mode="replicate")
    return F.conv2d(x, kernels, stride=stride)


def wavelets(scale: int, angles: int) -> Tensor:
    """The real, then the imaginary parts of Morlet wavelets of `angles` directions: (2 L, 1, k, k) float32."""
    slant = 4 / angles
    sigma, frequency = SIGMA * 2**scale, FREQUENCY / 2**scale
    y, x = _grid(sigma / min(slant, 1))
    found = []
    for i in range(angles):
        angle = (angles - angles // 2 - 1 - i) * math.pi / angles
        along, across = math.cos(angle) * x + math.sin(angle) * y, math.cos(angle) * y - math.sin(angle) * x
        envelope = torch.exp(-(along**2 + (slant * across) ** 2) / (2 * sigma**2)) * slant / (2 * math.pi * sigma**2)
        wave = envelope * torch.exp(1j * frequency * along)
        found.append(wave - envelope * wave.sum() / envelope.sum())  # of mean zero
    stacked = torch.stack(found)
    return torch.cat((stacked.real, stacked.imag))[:, None].float()


def average(scale: int) -> Tensor:
    """A Gaussian (1, 1, k, k) float32 whose values add up to one."""
    sigma = SIGMA * 2**scale
    y, x = _grid(sigma)
    kernel = torch.exp(-(x**2 + y**2) / (2 * sigma**2))
    return (kernel / kernel.sum())[None, None].float()


def _grid(deviation: float) -> tuple[Tensor, ...]:
    reach = math.ceil(REACH * deviation)
    places = torch.arange(-reach, reach + 1, dtype=torch.float64)
    return torch.meshgrid(places, places, indexing="ij")
