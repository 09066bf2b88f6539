"""Mirror images are left out where left and right tell classes apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torch import nn

from bigmodel_cli.commands.training.finetune_layers import start_layers
from bigmodel_cli.core.registry import models
from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.core.types import ImageSpec
from bigmodel_cli.engine.training import orientation
from bigmodel_cli.engine.training.orientation import fits_better


@pytest.mark.parametrize("classes", [2, 5])
def test_chance_is_a_half_and_a_sign_is_seen(classes: int) -> None:
    torch.manual_seed(0)
    labels = torch.randint(classes, (240,))
    sizes = torch.nn.functional.one_hot(labels, classes).double() + 0.1  # how far, which says nothing of the side
    either = torch.randn(240, classes).sign() * sizes
    found = fits_better(either, labels)
    assert found is not None and not found.matters and abs(found.share - 0.5) < 0.15
    found = fits_better(torch.randn(240, classes).sign() * 0.5 + sizes, labels)
    assert found is not None and found.matters


def test_too_few_to_say() -> None:
    assert fits_better(torch.randn(40, 3).double(), torch.arange(40)) is None
    assert fits_better(torch.randn(40, 3).double(), torch.zeros(40).long()) is None


def arrows(folder: Path, by: str) -> Path:
    """Arrows whose class is where they point, or which colour they have."""
    draw = torch.Generator().manual_seed(0)
    for i in range(60):
        right, warm, x, y = (int(torch.randint(n, (), generator=draw)) for n in (2, 2, 12, 12))
        image = Image.new("RGB", (32, 32), (200, 80, 20) if warm else (20, 80, 200))
        points = [(x, y), (x + 18, y + 8), (x, y + 16)] if right else [(x + 18, y), (x, y + 8), (x + 18, y + 16)]
        ImageDraw.Draw(image).polygon(points, fill="white")
        place = folder / f"c{right if by == 'side' else warm}"
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{i}.png")
    return folder


def published(folder: Path, by: str) -> dict[str, Any]:
    """The recipe of a resnet20 on arrows, whose weights are in `folder`."""
    torch.manual_seed(0)
    model = models.get("resnet20")(ImageSpec(3, 32, 32, ("a", "b")))
    with torch.no_grad():
        model.train()(torch.randn(16, 3, 32, 32))
    save_file(model.state_dict(), folder / "resnet20.safetensors")
    data = {"name": "image_folder", "path": str(arrows(folder / by, by))}
    return {"model": {"name": "resnet20"}, "data": data}


@pytest.mark.parametrize(("by", "mirrored"), [("side", False), ("colour", True)])
def test_finetune_mirrors_unless_it_would_change_the_class(by: str, mirrored: bool, tmp_path: Path) -> None:
    given = published(tmp_path, by)
    start = start_layers(tmp_path / "resnet20.safetensors", False, {"method": "full"}, [Layer("t", given)])
    assert resolve(start.layers).recipe.augment.options["flip"] is mirrored
    assert any("no mirror images" in line and "augment.flip=true" in line for line in start.notes) is not mirrored


def test_what_is_named_is_neither_looked_at_nor_denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orientation, "orientation", lambda *_: pytest.fail("the user has decided"))
    given = {**published(tmp_path, "side"), "augment": {"flip": True}}
    start = start_layers(tmp_path / "resnet20.safetensors", False, {"method": "full"}, [Layer("t", given)])
    assert resolve([*start.layers, Layer("t", given)]).recipe.augment.options["flip"] is True
    assert not any("no mirror images" in line for line in start.notes)


class Everywhere(nn.Linear):
    """A linear layer on each place of (B,C,H,W)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


@pytest.mark.parametrize("head", ["conv1", "layer1.0"])
def test_a_head_that_takes_no_vector_is_not_compared(
    head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of timm's heads are convolutions of 1 x 1; a linear layer may see each place, or each token."""
    given, real = published(tmp_path, "side"), orientation.task_and_model

    def with_head(*arguments: Any) -> Any:
        task, model, notes = real(*arguments)
        if head == "layer1.0":
            model.set_submodule(head, Everywhere(16, 16))
        return task, model, notes

    monkeypatch.setattr(orientation, "task_and_model", with_head)
    monkeypatch.setattr(orientation, "head_name", lambda _: head)
    monkeypatch.setattr(orientation, "_known", {})
    start = start_layers(tmp_path / "resnet20.safetensors", False, {"method": "full"}, [Layer("t", given)])
    assert resolve(start.layers).recipe.augment.options["flip"] is True
