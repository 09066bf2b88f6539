"""Augmentation of photos: keyed a sample, true to its formulas, and mixing that is soft labels exactly."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bigmodel_cli.core.registry import augments, losses
from bigmodel_cli.core.types import ImageSpec, SampleKey
from bigmodel_cli.data.image.augment import crop_at
from bigmodel_cli.data.image.augment_photo import (
    Mixing,
    _crop_cpu,
    _crop_grid,
    apply_policy,
    jitter_colour,
    random_resized_crop,
    resized_crop,
)
from bigmodel_cli.engine.training.class_weighted_loss import Weighted
from bigmodel_cli.tasks.image_classification import ImageClassification

STRONG: list[dict[str, Any]] = [
    {"policy": "trivial"}, {"policy": "rand", "crop": "none"}, {"colour": 0.4, "crop": "shift"}, {"erase": 8},
]  # fmt: skip


def random_images(n: int, side: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, side, side), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def key(indices: Any, seed: int = 1, epoch: int = 2) -> SampleKey:
    return SampleKey(seed, epoch, torch.as_tensor(indices))


@pytest.mark.parametrize("options", STRONG, ids=str)
def test_neither_batch_nor_order_matters(options: dict[str, Any]) -> None:
    augment, images = augments.get("strong")(**options), random_images(24)
    expected = augment(images, key(torch.arange(24)), (28, 28))
    order = torch.randperm(24, generator=torch.Generator().manual_seed(5))
    again = augment(images[order], key(order), (28, 28))
    assert torch.allclose(again.float(), expected[order].float(), atol=1e-3)
    for part in torch.arange(24).split(7):
        assert torch.allclose(augment(images[part], key(part), (28, 28)).float(), expected[part].float(), atol=1e-3)
    assert not torch.equal(expected, augment(images, key(torch.arange(24), epoch=3), (28, 28)))


def test_a_policy_leaves_torchs_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    apply_policy(random_images(3), key([0, 1, 2]), "rand")
    assert torch.equal(torch.rand(4), expected)


def test_a_crop_shows_between_the_asked_area_and_all_of_it() -> None:
    """On a ramp, the range of values in the crop is the width of its window."""
    ramp = torch.arange(128, dtype=torch.uint8).expand(400, 1, 128, 128)
    out = random_resized_crop(ramp, key(torch.arange(400)), (64, 64), 0.25, flip=False).float()
    wide = (out[:, 0, 0, -1] - out[:, 0, 0, 0]) * 64 / 63
    tall = random_resized_crop(ramp.transpose(2, 3), key(torch.arange(400)), (64, 64), 0.25, flip=False).float()
    tall = (tall[:, 0, -1, 0] - tall[:, 0, 0, 0]) * 64 / 63
    area, ratio = wide * tall / 128**2, wide / tall
    assert 0.2 < area.min() < 0.35 and 0.9 < area.max() < 1.05
    assert 0.7 < ratio.min() < 0.8 and 1.25 < ratio.max() < 1.45
    assert out.shape == (400, 1, 64, 64)


def test_crops_of_another_side_are_for_training_alone() -> None:
    images, at = random_images(6, 40), key(torch.arange(6))
    batch = {"image": images, "label": torch.zeros(6, dtype=torch.int64)}
    smaller = task(resized_crop(area=0.25, side=24), mean=(0.0,) * 3, std=(1.0,) * 3)
    wanted = random_resized_crop(images, at, (24, 24), 0.25, flip=True).float() / 255
    assert torch.allclose(smaller.prepare(batch, at)["image"], wanted)
    assert smaller.prepare(batch)["image"].shape[2:] == (28, 28)
    assert task(resized_crop(area=0.25)).prepare(batch, at)["image"].shape[2:] == (28, 28)


def test_half_of_the_crops_are_mirrored() -> None:
    ramp = torch.arange(128, dtype=torch.uint8).expand(600, 1, 128, 128)
    out = random_resized_crop(ramp, key(torch.arange(600)), (32, 32), 0.5, flip=True).int()
    share = (out[:, 0, 0, 0] > out[:, 0, 0, -1]).float().mean()
    assert 0.42 < share < 0.58


def test_windows_on_both_devices_agree() -> None:
    """The CPU's gather is numpy's: torch's, which other devices use, gives the same."""
    padded = random_images(9, 20)
    top, left = torch.tensor([0, 1, 2, 3, 4, 0, 4, 2, 2]), torch.tensor([4, 3, 2, 1, 0, 0, 4, 1, 3])
    got = crop_at(padded, top, left, 5)
    for i in range(9):
        assert torch.equal(got[i], padded[i, :, top[i] : top[i] + 16, left[i] : left[i] + 16])


def test_crops_on_a_gpu_are_those_on_a_cpu() -> None:
    """grid_sample on the batch, which other devices use, shows the same windows to within rounding to whole pixels."""
    y, x = torch.meshgrid(torch.linspace(0, 255, 64), torch.linspace(0, 255, 64), indexing="ij")
    smooth = torch.stack([x, y, (x + y) / 2]).round().to(torch.uint8).expand(50, 3, 64, 64)
    g = torch.Generator().manual_seed(0)
    tall, wide = torch.rand(2, 50, generator=g) * 30 + 30
    places = (torch.rand(50, generator=g) * (64 - tall), torch.rand(50, generator=g) * (64 - wide), tall, wide)
    cpu, grid = _crop_cpu(smooth, places, (48, 48)).float(), _crop_grid(smooth, places, (48, 48))
    assert (cpu - grid).abs().max() < 2 * 255 / 64  # two pixels of this ramp
    assert (cpu - grid).abs().mean() < 255 / 64 / 2


def test_colour_keeps_the_range_and_zero_strength_the_image() -> None:
    images, places = random_images(16), key(torch.arange(16))
    out = jitter_colour(images, places, 0.8)
    assert out.min() >= 0 and out.max() <= 255 and not torch.equal(out, images.float())
    assert torch.allclose(jitter_colour(images, places, 0.0), images.float(), atol=1e-3)
    assert jitter_colour(images[:, :1], places, 0.3).shape == (16, 1, 32, 32)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (0.2, 1.0)])
def test_mixing_depends_on_who_is_there_but_not_on_their_order(mixup: float, cutmix: float) -> None:
    images = random_images(16).float()
    mixed, partner, share = Mixing(mixup, cutmix)(images, key(torch.arange(16)))
    assert sorted(partner.tolist()) == list(range(16)) and not (partner == torch.arange(16)).any()
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    again, other, same = Mixing(mixup, cutmix)(images[order], key(order))
    assert torch.equal(again, mixed[order]) and torch.equal(order[other], partner[order])
    assert torch.equal(same, share[order]) and share.min() >= 0 and share.max() <= 1
    # What is shown is what the label says: mean pixels mix by the same share.
    flat = torch.arange(16.0).view(16, 1, 1, 1).expand(16, 3, 32, 32)
    shown, partner, share = Mixing(mixup, cutmix)(flat, key(torch.arange(16)))
    expected = share * torch.arange(16.0) + (1 - share) * partner
    assert torch.allclose(shown.mean((1, 2, 3)), expected, atol=1e-3)


def test_shares_of_mixup_are_beta_distributed() -> None:
    """Beta(a, a) has the mean 1/2 and the variance 1 / (4 (2a + 1))."""
    n = 4000
    for alpha in (0.2, 1.0, 4.0):
        _, _, share = Mixing(alpha, 0.0)(torch.zeros(n, 1, 1, 1), key(torch.arange(n)))
        assert share.mean().item() == pytest.approx(0.5, abs=0.03)
        assert share.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.08)


def task(augment: Any, **spec: Any) -> ImageClassification:
    return ImageClassification(ImageSpec(3, 28, 28, ("a", "b", "c"), **spec), losses.get("cross_entropy")(), augment)


def test_the_loss_of_mixed_images_is_that_of_soft_labels() -> None:
    job = task(augments.get("strong")(mixup=1.0), square=32, crop=0.875)
    raw = {"image": random_images(8), "label": torch.arange(8) % 3, "index": torch.arange(8)}
    batch = job.prepare(raw, key(torch.arange(8)))
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 28 * 28, 3))
    soft = torch.nn.functional.one_hot(batch["label"], 3) * batch["share"][:, None]
    soft = soft + torch.nn.functional.one_hot(batch["other_label"], 3) * (1 - batch["share"])[:, None]
    expected = torch.nn.functional.cross_entropy(model(batch["image"]), soft, reduction="sum")
    assert job.loss(model, batch).total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert "share" not in job.prepare(raw)  # evaluation never mixes


def test_class_weights_weigh_training_and_leave_evaluation_alone() -> None:
    job = Weighted(task(None), torch.tensor([2.0, 1.0, 0.5]))
    batch = {"image": torch.rand(6, 3, 28, 28), "label": torch.arange(6) % 3, "index": torch.arange(6)}
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 28 * 28, 3))
    each = torch.nn.functional.cross_entropy(model(batch["image"]), batch["label"], reduction="none")
    expected = (each * torch.tensor([2, 1, 0.5, 2, 1, 0.5])).sum().item()
    assert job.loss(model, batch).total.item() == pytest.approx(expected, rel=1e-5)
    assert job.evaluate(model, batch)["loss"].item() == pytest.approx(each.sum().item(), rel=1e-5)


def test_without_an_augmentation_the_middle_is_seen() -> None:
    job, images = task(augments.get("none")(), square=32, crop=0.875), random_images(4)
    raw = {"image": images, "label": torch.zeros(4, dtype=torch.int64), "index": torch.arange(4)}
    assert torch.equal(job.prepare(raw)["image"], images[:, :, 2:30, 2:30].float())
    assert torch.equal(job.prepare(raw, key(torch.arange(4)))["image"], images[:, :, 2:30, 2:30].float())
