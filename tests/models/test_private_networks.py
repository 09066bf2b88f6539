"""The networks made for private training: scattering against transforms by hand, and the shapes of ``dp-cnn``."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.signal import convolve2d

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import models
from bigmodel_cli.core.types import ImageSpec
from bigmodel_cli.models.scatternet import Scattering


def morlet(scale: int, angle: float, reach: int) -> Any:
    """A Morlet wavelet from its formula (Bruna and Mallat 2013), for 8 directions: an envelope half as narrow along."""
    sigma, frequency, slant = 0.8 * 2**scale, 0.75 * math.pi / 2**scale, 0.5
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(float)
    along, across = math.cos(angle) * x + math.sin(angle) * y, -math.sin(angle) * x + math.cos(angle) * y
    envelope = np.exp(-(along**2 + slant**2 * across**2) / (2 * sigma**2)) * slant / (2 * math.pi * sigma**2)
    wave = np.exp(1j * frequency * along)
    return envelope * (wave - (envelope * wave).sum() / envelope.sum())


def gaussian(scale: int) -> Any:
    sigma = 0.8 * 2**scale
    reach = math.ceil(3 * sigma)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    kernel = np.exp(-(x**2 + y**2) / (2 * sigma**2))
    return kernel / kernel.sum()


def filtered(image: Any, kernel: Any) -> Any:
    """Correlation with mirrored borders."""
    reach = len(kernel) // 2
    return convolve2d(np.pad(image, reach, mode="reflect"), kernel[::-1, ::-1], mode="valid")


def test_one_path_of_each_order_is_what_convolution_by_scipy_gives() -> None:
    image = np.random.default_rng(0).random((32, 32))
    found = Scattering(2, 8)(torch.from_numpy(image)[None, None].float())[0].numpy()
    assert found.shape == (1 + 2 * 8 + 64, 8, 8)
    angles = [(7 - 4 - i) * math.pi / 8 for i in range(8)]
    np.testing.assert_allclose(found[0], filtered(image, gaussian(1))[::4, ::4], rtol=1e-4)
    first = np.abs(filtered(image, morlet(0, angles[2], 5)))
    np.testing.assert_allclose(found[1 + 2], filtered(first, gaussian(1))[::4, ::4], rtol=1e-3)
    coarse = np.abs(filtered(image, morlet(1, angles[5], 10)))[::2, ::2]
    np.testing.assert_allclose(found[1 + 8 + 5], filtered(coarse, gaussian(0))[::2, ::2], rtol=1e-3)
    second = np.abs(filtered(first, morlet(1, angles[5], 10)))[::2, ::2]
    np.testing.assert_allclose(found[1 + 16 + 2 * 8 + 5], filtered(second, gaussian(0))[::2, ::2], rtol=1e-3)


def test_a_wave_answers_in_its_own_direction_and_nothing_answers_to_brightness() -> None:
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    scattering = Scattering(2, 8)
    flat = scattering(torch.full((1, 1, 32, 32), 0.7))[0]
    torch.testing.assert_close(flat[0], torch.full((8, 8), 0.7))
    assert float(flat[1:].max()) < 1e-3
    for wave, direction in ((x, 3), (y, 7)):  # angles of 0 and of -pi / 2
        answers = scattering((0.75 * math.pi * wave).cos()[None, None])[0, 1:9, 2:-2, 2:-2].mean((1, 2))
        assert int(answers.argmax()) == direction


@pytest.mark.parametrize(("channels", "height", "width", "classes"), [(1, 28, 28, 10), (3, 32, 40, 7), (1, 16, 16, 2)])
def test_shapes_and_sizes(channels: int, height: int, width: int, classes: int) -> None:
    spec = ImageSpec(channels, height, width, tuple(map(str, range(classes))))
    images = torch.rand(2, channels, height, width)
    for name in ("dp-cnn", "scatter-linear"):
        assert models.get(name)(spec)(images).shape == (2, classes)


def test_dp_cnn_is_the_network_of_the_tutorial() -> None:
    spec = ImageSpec(1, 28, 28, tuple("0123456789"))
    assert sum(p.numel() for p in models.get("dp-cnn")(spec).parameters()) == 26_010  # as TensorFlow Privacy counts
    with pytest.raises(InputError, match="at least 16x16"):
        models.get("dp-cnn")(ImageSpec(1, 12, 28, ("a", "b")))
