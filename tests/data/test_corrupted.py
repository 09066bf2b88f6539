"""Corruptions of images: what they keep, that they grow with severity, and that a seed repeats them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bigmodel_cli.core.registry import corruptions
from bigmodel_cli.data.image.corrupted import CorruptedImages
from bigmodel_cli.data.image.digits import digits
from bigmodel_cli.data.subset import Subset


class Pictures:
    """Two pictures with edges, colours and a dark and a bright side."""

    def __init__(self, side: int, channels: int) -> None:
        across = torch.linspace(0, 1, side).expand(channels, side, side)
        disk = (torch.hypot(*torch.meshgrid(*[torch.linspace(-1, 1, side)] * 2, indexing="ij")) < 0.6).float()
        colour = torch.linspace(0.3, 1, channels).view(-1, 1, 1)
        self.images = torch.stack(
            [0.2 + 0.5 * across * colour + 0.2 * disk, 0.8 - 0.5 * disk.expand_as(across) * colour]
        )

    def __len__(self) -> int:
        return 2

    def gather(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        images = (self.images[indices] * 255).byte()
        return {"image": images, "label": torch.zeros_like(indices), "index": indices}

    def name(self, index: int) -> str:
        return str(index)


@pytest.mark.parametrize(("side", "channels"), [(28, 1), (96, 3)])
@pytest.mark.parametrize("name", corruptions.names())
def test_a_corruption_grows_and_repeats(name: str, side: int, channels: int) -> None:
    source, both = Pictures(side, channels), torch.tensor([0, 1])
    clean = source.gather(both)["image"].float()
    far = []
    for severity in (0, 4):
        found = CorruptedImages(source, name, severity).gather(both)["image"]
        assert found.shape == clean.shape and found.dtype == torch.uint8
        far.append(float((found - clean).abs().mean()))
        again = CorruptedImages(source, name, severity).gather(torch.tensor([1]))["image"]
        assert torch.equal(again[0], found[1])  # the noise of an image does not depend on its batch
    assert far[1] > 0 and far[0] < far[1] < 200, far


def test_there_are_the_fifteen_of_the_paper() -> None:
    assert len(corruptions.names()) == 15 and sorted(f.meta["order"] for f in corruptions.found.values()) == [
        *range(1, 16)
    ]


def test_images_smaller_than_a_blur_are_corrupted_too(tmp_path: Path) -> None:
    source = Subset(digits(tmp_path).load["test"](), torch.arange(3))
    for name in corruptions.names():
        found = CorruptedImages(source, name, 4).gather(torch.arange(3))["image"]
        assert found.shape == (3, 1, 8, 8), name
