"""Augmentation: what it does, and that it depends on (seed, epoch, index) alone."""

import pytest
import torch

from bigmodel_cli.core.keyed_random import uniform
from bigmodel_cli.core.registry import augments
from bigmodel_cli.core.types import SampleKey

NAMES = ["shift", "crop_flip", "affine", "erase", "resized_crop", "strong"]


def random_images(n, height=12, width=10):
    return torch.randint(1, 256, (n, 3, height, width), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def key(indices, seed=1, epoch=2):
    return SampleKey(seed, epoch, torch.as_tensor(indices))


@pytest.mark.parametrize("name", NAMES)
def test_neither_batch_nor_order_matters(name):
    augment, images = augments.get(name)(), random_images(67)
    expected = augment(images, key(torch.arange(67)))
    order = torch.randperm(67, generator=torch.Generator().manual_seed(5))
    assert torch.equal(augment(images[order], key(order)), expected[order])
    for part in torch.arange(67).split(13):
        assert torch.equal(augment(images[part], key(part)), expected[part])
    for i in range(5):
        assert torch.equal(augment(images[i : i + 1], key([i])), expected[i : i + 1])


@pytest.mark.parametrize("name", NAMES)
def test_epoch_and_seed_matter(name):
    augment, images, places = augments.get(name)(), random_images(32), torch.arange(32)
    first = augment(images, key(places))
    assert first.shape == images.shape
    assert not torch.equal(first, augment(images, key(places, epoch=3)))
    assert not torch.equal(first, augment(images, key(places, seed=2)))


def test_none_changes_nothing():
    images = random_images(4)
    assert torch.equal(augments.get("none")()(images, key(torch.arange(4))), images)


def test_shift_is_a_crop_of_the_padded_image_and_reaches_every_place():
    pixels, images, places = 2, random_images(400), torch.arange(400)
    moved = augments.get("shift")(pixels=pixels)(images, key(places))
    padded = torch.nn.functional.pad(images, (pixels,) * 4)
    seen = set()
    for i in range(400):
        matches = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if torch.equal(moved[i], padded[i, :, top : top + 12, left : left + 10])
        ]
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) == 25


def test_flip_mirrors_about_half():
    images = random_images(400)
    out = augments.get("crop_flip")(pixels=0)(images, key(torch.arange(400)))
    flipped = [torch.equal(o, i.flip(2)) for o, i in zip(out, images, strict=True)]
    assert all(f or torch.equal(o, i) for f, o, i in zip(flipped, out, images, strict=True))
    assert 150 < sum(flipped) < 250


def test_affine_without_amounts_is_the_image_itself():
    images = random_images(8)
    zero = dict.fromkeys(augments.get("affine").schema.model_fields, 0.0)
    out = augments.get("affine")(**zero)(images, key(torch.arange(8)))
    torch.testing.assert_close(out, images.float(), atol=1e-2, rtol=0)


def test_affine_turns_without_shear_where_images_are_not_square():
    # A disc far from every edge is a disc after any turn about the centre: its area and its width stay.
    y, x = torch.meshgrid(torch.arange(40) - 19.5, torch.arange(80) - 39.5, indexing="ij")
    disc = ((x**2 + y**2) < 12**2).float().expand(64, 1, 40, 80) * 255
    options = dict.fromkeys(augments.get("affine").schema.model_fields, 0.0) | {"degrees": 45.0}
    out = augments.get("affine")(**options)(disc, key(torch.arange(64)))
    assert (out - disc).abs().mean() < 2.0


def test_erase_blanks_a_square():
    images = random_images(200, 20, 20)
    blank = (augments.get("erase")(size=6)(images, key(torch.arange(200))) == 0).all(1)
    sizes = blank.flatten(1).sum(1)
    assert sizes.max() == 36 and (sizes > 0).any()


def test_uniform_is_uniform_and_its_streams_are_apart():
    places = torch.arange(100_000)
    a, b = uniform(key(places), 0), uniform(key(places), 1)
    for u in (a, b, uniform(key(places, epoch=3), 0), uniform(key(places, seed=9), 0)):
        assert u.min() >= 0 and u.max() < 1
        assert abs(u.mean() - 1 / 2) < 0.004 and abs(u.var() - 1 / 12) < 0.001
        assert abs(torch.corrcoef(torch.stack([u[1:], u[:-1]]))[0, 1]) < 0.015
    for other in (b, uniform(key(places, epoch=3), 0), uniform(key(places, seed=9), 0)):
        assert abs(torch.corrcoef(torch.stack([a, other]))[0, 1]) < 0.015


@pytest.mark.parametrize("seed", [0, 2**31, 2**40, 2**63 - 1])
def test_any_seed_works(seed):
    assert uniform(key(torch.arange(10), seed=seed), 0).unique().numel() == 10
