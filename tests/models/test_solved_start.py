"""Fine-tuning that starts from a head that is solved for (LP-FT): what it begins with, keeps, and goes on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from bigmodel_cli.commands.training.finetune_layers import start_layers
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import models
from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.core.types import ImageSpec
from bigmodel_cli.data.image.arrays import ImageArrays
from bigmodel_cli.engine.build.finetune_defaults import KEEP_STATISTICS, suitable_augment, suitable_statistics
from bigmodel_cli.engine.checkpoint import checkpoint
from bigmodel_cli.engine.device.ranks import Ranks
from bigmodel_cli.engine.distributed.process_group import Group
from bigmodel_cli.engine.training import assemble as assemble_module
from bigmodel_cli.engine.training import folded_batchnorm, linear_probe
from bigmodel_cli.engine.training.assemble import assemble, execute
from bigmodel_cli.engine.training.run import Hooks, Run

DATA = {"name": "synthetic_images", "classes": 3, "count": 60}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A resnet20 of another program, whose BatchNorm layers have seen images."""
    torch.manual_seed(0)
    model = models.get("resnet20")(ImageSpec(3, 32, 32, ("a", "b")))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model.train()(torch.randn(16, 3, 32, 32))
    path = tmp_path_factory.mktemp("published") / "resnet20.safetensors"
    save_file(model.state_dict(), path)
    return path


class Finetuned:
    """A run of `method` from the weights, the epochs it reported, and the checkpoints it saved: (epoch, best)."""

    def __init__(
        self,
        weights: Path,
        method: str,
        stop_at: int | None = None,
        resumed: dict[str, Any] | None = None,
        **sections: dict[str, Any],
    ) -> None:
        train = {"batch_size": 12, "max_steps": 9, **sections.pop("train", {})}
        given = {"model": {"name": "resnet20", "image_size": 32}, "data": DATA, "train": train}
        layer = Layer("t", {**given, "placement": {"precision": "fp32"}, "augment": {"name": "none"}, **sections})
        recipe = resolve(start_layers(weights, False, {"method": method}, [layer]).layers).recipe
        self.epochs: list[dict[str, Any]] = []
        self.saves: list[tuple[int, bool]] = []

        def hear(event: dict[str, Any]) -> None:
            if event["event"] == "epoch":
                self.epochs.append(event)

        hooks = Hooks(
            hear,
            lambda run: stop_at is not None and run.progress.step >= stop_at,
            lambda run, best: self.saves.append((run.progress.epoch, best)),
        )
        self.run: Run = assemble(recipe, resumed, measure=False, hooks=hooks)
        self.finished = execute(self.run)


def test_it_starts_where_the_frozen_backbone_ends_and_keeps_the_better(weights: Path) -> None:
    solve = {"start": {"solve": True}}
    frozen = Finetuned(weights, "freeze-backbone", **solve)
    tuned = Finetuned(weights, "full", **solve)
    begins = tuned.epochs[0]
    for key in ("val_accuracy", "val_loss", "train_loss"):
        assert begins[key] == pytest.approx(frozen.epochs[0][key], abs=1e-5)
    assert [e["epoch"] for e in tuned.epochs] == list(range(len(tuned.epochs))) and begins["step"] == 0
    assert tuned.saves[0] == (0, True) and tuned.run.progress.step == 9
    best = [e for e in tuned.epochs if e["best"]][-1]
    assert tuned.run.progress.best_epoch == best["epoch"] and tuned.run.progress.best_metric == best["val_accuracy"]


def test_finetune_solves_for_a_new_head_only(weights: Path, tmp_path: Path) -> None:
    assert Finetuned(weights, "full", stop_at=0).run.recipe.start.options["solve"], "a new head"
    trained = Finetuned(weights, "full", stop_at=0)
    checkpoint.save(tmp_path / "x.pt", trained.run.state())
    again = Layer("t", {"data": DATA})
    layers = start_layers(tmp_path / "x.pt", False, {"method": "full"}, [again]).layers
    assert not resolve(layers).recipe.start.options["solve"], "the head knows these classes"


@pytest.mark.parametrize("stop_at", [0, 4])
def test_a_resumed_run_ends_in_the_same_bits_and_solves_once(
    stop_at: int, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the evaluation of the start, it solves again: nothing of the head was saved. Later, it does not."""
    whole = Finetuned(weights, "full", train={"ema_decay": 0.9})
    half = Finetuned(weights, "full", stop_at, train={"ema_decay": 0.9})
    assert not half.finished
    checkpoint.save(tmp_path / "half.pt", half.run.state())
    solved, real = [], linear_probe._solve_head
    monkeypatch.setattr(linear_probe, "_solve_head", lambda *args: (solved.append(1), real(*args)))
    rest = Finetuned(weights, "full", None, checkpoint.load(tmp_path / "half.pt"), train={"ema_decay": 0.9})
    assert len(solved) == (1 if stop_at == 0 else 0)
    assert [e["epoch"] for e in half.epochs + rest.epochs] == [e["epoch"] for e in whole.epochs]
    for one, other in zip(whole.run.model.parameters(), rest.run.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_kept_statistics_do_not_follow_the_batches(weights: Path) -> None:
    """Their layers' scale and shift train; without the option they follow, as do those of a larger data set."""
    kept, followed = (Finetuned(weights, "full", start={"statistics": how}) for how in ("keep", "update"))
    start = load_file(weights)
    for run, expected in ((kept.run, True), (followed.run, False)):
        now = run.model.state_dict()
        for name in ("bn1.running_mean", "layer3.2.bn2.running_var"):
            assert torch.equal(now[name], start[name]) is expected
        assert not torch.equal(now["bn1.weight"], start["bn1.weight"])
    assert Finetuned(weights, "full", stop_at=0).run.recipe.start.statistics == "keep"
    assert suitable_statistics(kept.run.recipe, kept.run.task.spec, KEEP_STATISTICS + 1) == {}


@pytest.mark.parametrize("method", ["full", "lora"])
def test_batchnorm_that_is_folded_trains_as_it_does_beside_its_convolution(
    method: str, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All are, but those after a convolution that computes its weight, as with an adapter; weights, statistics and
    outputs agree, and the checkpoint is the same."""
    statistics = "keep" if method == "full" else "update"
    plainly = {"start": {"statistics": statistics, "solve": False}, "optimizer": {"name": "momentum", "lr": 0.003}}
    found: list[int] = []
    fold = assemble_module.fold_kept_statistics
    monkeypatch.setattr(assemble_module, "fold_kept_statistics", lambda run: found.append(fold(run)))
    folded = Finetuned(weights, method, **plainly)
    monkeypatch.setattr(assemble_module, "fold_kept_statistics", lambda run: None)
    beside = Finetuned(weights, method, **plainly)
    norms = sum(isinstance(m, torch.nn.BatchNorm2d) for m in beside.run.model.modules())
    assert found == [norms if method == "full" else 0]
    ours, expected = folded.run.model.state_dict(), beside.run.model.state_dict()
    assert list(ours) == list(expected)
    start = load_file(weights)
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, atol=1e-5, rtol=1e-4)
    assert method == "lora" or not torch.equal(expected["layer2.0.bn1.bias"], start["layer2.0.bn1.bias"])
    assert method == "full" or bool(expected["layer2.0.conv1.parametrizations.weight.0.b"].any())
    folded.run.model.train()  # statistics that are not kept work as always
    beside.run.model.train()
    images = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(folded.run.model(images), beside.run.model(images), atol=1e-3, rtol=1e-3)


def test_a_convolution_that_something_else_reads_is_not_folded() -> None:
    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2)
            self.last, self.alone = torch.nn.Conv2d(2, 2, 1), torch.nn.BatchNorm2d(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            return self.alone(self.last(y + self.norm(y)))  # type: ignore[no-any-return]

    model = Both().eval()
    norms: list[torch.nn.Module] = [model.norm, model.alone, model.alone]
    pairs = folded_batchnorm._pairs(model, norms, lambda: model(torch.ones(1, 1, 4, 4)).sum())
    assert [pair[:2] for pair in pairs] == [(model.last, model.alone)]


def test_several_processes_are_told_to_start_from_zero(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Finetuned(weights, "full", stop_at=0).run
    run.progress.best_metric = None
    object.__setattr__(run.parallel, "group", Group(Ranks(0, 2, 0, 2)))
    with pytest.raises(InputError, match="one process") as refused:
        linear_probe.start_from_solved_head(run)
    assert "start.solve=false" in refused.value.hint


def test_one_option_of_the_augmentation_that_the_data_gets(weights: Path, tmp_path: Path) -> None:
    """It is changed, and the others stay; an option that this augmentation lacks is refused by name."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 40, 40, 3), np.uint8)
    for i, image in enumerate(pixels):
        (tmp_path / f"photos/train/{'ab'[i % 2]}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / f"photos/train/{'ab'[i % 2]}/{i}.jpg")
    data = {"data": {"name": "image_folder", "path": str(tmp_path / "photos")}, "model": {"name": "resnet20"}}

    def augment(**options: Any) -> dict[str, Any]:
        given = [Layer("t", {**data, **({"augment": options} if options else {})})]
        return resolve(start_layers(weights, False, {"method": "full"}, given).layers).recipe.to_dict()["augment"]

    assert augment()["flip"] is True
    assert augment(flip=False) == {**augment(), "flip": False}
    assert augment(name="none") == {"name": "none"}
    with pytest.raises(InputError, match="padding"):
        augment(padding=3)


@pytest.mark.parametrize("grey", (False, True))
def test_colour_photos_are_mirrored_and_grey_ones_are_not(grey: bool, weights: Path, tmp_path: Path) -> None:
    for at in range(20):
        pixels = np.random.default_rng(at).integers(0, 255, (40, 40, 1 if grey else 3)).repeat(3 if grey else 1, 2)
        folder = tmp_path / "photos" / "ab"[at % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype("uint8")).save(folder / f"{at}.jpg", subsampling=0)
    given = {"model": {"name": "resnet20"}, "data": {"name": "image_folder", "path": str(tmp_path / "photos")}}
    found = start_layers(weights, False, {"method": "full"}, [Layer("t", given)])
    assert resolve(found.layers).recipe.augment.options["flip"] is not grey
    assert any(("with mirror images" in note) is not grey for note in found.notes if "augmentation" in note)


@pytest.mark.parametrize(
    ("model", "takes"),
    [("resnet18", True), ("tv:mobilenet_v3_small", True), ("timm:convnext_atto", True), ("vit", False),
     ("timm:levit_128s", False), ("tv:vgg11", False), ("timm:vgg11", False), ("tv:alexnet", False)],
)  # fmt: skip
def test_crops_have_fewer_pixels_where_the_network_only_averages_its_map(model: str, takes: bool) -> None:
    """The head of VGG has weights for each place: torchvision stretches smaller maps for it."""
    recipe = resolve([Layer("t", {"model": {"name": model}, "data": DATA})]).recipe
    spec = ImageSpec(3, 224, 224, ("a", "b"), square=224)
    red = torch.tensor([200, 20, 90], dtype=torch.uint8).view(1, 3, 1, 1).expand(4, 3, 8, 8)
    found = suitable_augment(recipe, ImageArrays(red, torch.zeros(4, dtype=torch.int64), "train"), spec)
    assert found == {"name": "resized_crop", "area": 0.25, "flip": True, **({"side": 176} if takes else {})}
