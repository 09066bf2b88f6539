"""Quicker ways to the same answers: folded BatchNorm, bf16 where it agrees, features of a frozen backbone kept."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from bigmodel_cli.core.errors import InputError, InterruptedRun
from bigmodel_cli.core.registry import models
from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.engine.build.data import load_data, load_split
from bigmodel_cli.engine.build.load import load_trained
from bigmodel_cli.engine.build.model import build_model, build_task
from bigmodel_cli.engine.checkpoint import checkpoint
from bigmodel_cli.engine.device.placement import Placement, choose_placement
from bigmodel_cli.engine.inference import optimize
from bigmodel_cli.engine.inference.batch_size import max_batch_size
from bigmodel_cli.engine.inference.int8_conv import has_int8
from bigmodel_cli.engine.inference.optimize import fold_batchnorm, relative_error
from bigmodel_cli.engine.inference.predict import optimize_for_files, predict_files
from bigmodel_cli.engine.inference.tta import with_flip_tta
from bigmodel_cli.engine.session.run_folder import RunFolder
from bigmodel_cli.engine.session.session import train
from bigmodel_cli.engine.training import cached_features
from bigmodel_cli.engine.training.assemble import assemble, prepare
from bigmodel_cli.engine.training.build_run import build
from bigmodel_cli.engine.training.evaluate import collect
from bigmodel_cli.engine.training.loop import fit
from bigmodel_cli.engine.training.run import Hooks, Run


def recipe(**sections: Any) -> Any:
    return resolve([Layer("test", {"data": {"name": "digits"}, **sections})]).recipe


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "run"
    wanted = recipe(model={"name": "resnet18"}, train={"epochs": 1, "max_steps": 6})
    train(wanted, RunFolder(folder, "x"), lambda event: None)
    return folder / "best.pt"


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet20"])
def test_folding_leaves_no_batchnorm_and_the_same_answers(name: str) -> None:
    torch.manual_seed(0)
    wanted = recipe(model={"name": name})
    spec = load_data(wanted.data).spec
    model = build_model(wanted, spec)
    x = torch.randn(16, 1, 8, 8)
    for _ in range(3):  # statistics that are not the identity
        model(torch.randn(32, 1, 8, 8) * 3 + 1)
    model.eval()
    before = model(x)
    folded = fold_batchnorm(model)
    assert folded is not None
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    torch.testing.assert_close(folded(x), before, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model(x), before)  # the original is as it was


def test_a_head_of_a_class_of_its_own_is_still_a_layer_after_folding() -> None:
    class OwnLinear(nn.Linear):
        """As timm's, whose operations a tracer would take instead of the layer."""

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(input, self.weight, self.bias)

    layers = {"conv": nn.Conv2d(1, 4, 3), "norm": nn.BatchNorm2d(4), "flat": nn.Flatten(), "head": OwnLinear(4, 2)}
    folded = fold_batchnorm(nn.Sequential(OrderedDict(layers)).eval())
    assert folded is not None
    called: list[int] = []
    folded.get_submodule("head").register_forward_pre_hook(lambda *_: called.append(1))
    folded(torch.zeros(2, 1, 3, 3))
    assert called == [1]


def test_a_model_that_cannot_be_traced_is_left_alone() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.conv(x)) if x.sum() > 0 else x

    class Signalled(Branches):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise InterruptedRun(15, "stopped")

    assert fold_batchnorm(Branches().eval()) is None
    assert fold_batchnorm(nn.Sequential(nn.Linear(1, 1))) is None
    with pytest.raises(InterruptedRun):  # a signal while it is traced; it would not stop what solves for its head
        fold_batchnorm(Signalled().eval())


def test_the_quick_form_answers_like_the_model(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimize, "has_int8", lambda device: False)
    monkeypatch.setattr(Placement, "has_bf16", True)
    monkeypatch.setattr(optimize, "MIN_SECONDS", 0.0)
    monkeypatch.setattr(optimize, "MIN_SPEEDUP", 0.0)
    trained = load_trained(base)
    placement = choose_placement(trained.recipe.placement)
    source = load_split(load_data(trained.recipe.data), trained.recipe.data, "val")
    model = placement.model(trained.model)
    plain, said = collect(model, trained.task, source, placement, 64)
    quick, note = collect(model, trained.task, source, placement, 64, allow_low_precision=True)
    assert "BatchNorm folded" in said and "bf16" not in said
    assert "bf16" in note
    assert 0 < relative_error(quick, plain) < optimize.TOLERANCE
    agree = (quick["logits"].argmax(1) == plain["logits"].argmax(1)).double().mean().item()
    assert agree > 0.95


def test_many_files_are_asked_of_the_quick_form(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimize, "MIN_SECONDS", 0.0)
    monkeypatch.setattr(optimize, "MIN_SPEEDUP", 0.0)
    trained = load_trained(base)
    placement = choose_placement(trained.recipe.placement)
    model = placement.model(trained.model)
    files = [tmp_path / f"{i}.png" for i in range(6)]
    for i, file in enumerate(files[1:]):  # the first is missing
        Image.new("L", (8, 8), 40 * i).save(file)
    quick = optimize_for_files(model, trained.task, placement, files, allow_low_precision=False)
    assert quick.note.startswith("BatchNorm folded")
    asked = [dict(predict_files(m, trained.task, placement, files, 1)) for m in (model, quick.model)]
    assert isinstance(asked[1].pop(str(files[0])), InputError)
    assert all(asked[0][name][0][0] == answer[0][0] for name, answer in asked[1].items())


def test_a_image_and_its_mirror_image_are_answered_together(
    run_cli: Any, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = load_trained(base)
    placement = choose_placement(trained.recipe.placement)
    source = load_split(load_data(trained.recipe.data), trained.recipe.data, "val")
    model = placement.model(trained.model)
    batch = trained.task.prepare(source.gather(torch.arange(len(source))))
    with torch.inference_mode():
        model.eval()
        wanted = (model(batch["image"]) + model(batch["image"].flip(3))) / 2
    monkeypatch.setattr(optimize, "MIN_SECONDS", 0.0)
    monkeypatch.setattr(optimize, "MIN_SPEEDUP", 0.0)
    found, note = collect(with_flip_tta(model, trained.task), trained.task, source, placement, 64)
    assert "BatchNorm folded" in note
    torch.testing.assert_close(found["logits"], wanted, rtol=1e-3, atol=1e-3)
    done = run_cli("eval", base, "--tta", "--json")
    said = json.loads(done.stdout)
    assert any("mirror image" in line for line in said["notes"])
    right = (wanted.argmax(1) == batch["label"]).double().mean().item()
    assert said["headline"]["accuracy"]["value"] == pytest.approx(right, abs=1e-9)


def test_answers_that_differ_are_not_taken(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimize, "MIN_SECONDS", 0.0)
    monkeypatch.setattr(optimize, "MIN_SPEEDUP", 0.0)
    monkeypatch.setattr(optimize, "TOLERANCE", 0.0)
    trained = load_trained(base)
    placement = choose_placement(trained.recipe.placement)
    source = load_split(load_data(trained.recipe.data), trained.recipe.data, "val")
    _, note = collect(placement.model(trained.model), trained.task, source, placement, 64, allow_low_precision=True)
    assert note == ""


def test_large_images_are_answered_in_smaller_batches() -> None:
    placement = choose_placement(recipe(model={"name": "mlp"}).placement)
    wanted = recipe(model={"name": "resnet18"})
    spec = load_data(wanted.data).spec
    assert max_batch_size(build_task(wanted, spec), placement) > 10_000
    assert max_batch_size(build_task(wanted, spec.with_(channels=3, height=224, width=224)), placement) == 27


def finetune(base: Path, **sections: Any) -> Any:
    values = {
        "model": {"name": "resnet18"},
        "start": {"checkpoint": str(base), "method": "freeze-backbone"},
        "train": {"epochs": 3, "batch_size": 100},
        "optimizer": {"name": "adamw", "lr": 1e-2},
        **sections,
    }
    return recipe(**values)


def test_kept_features_give_the_same_head_to_rounding(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = finetune(base)
    built = build(wanted)
    kept, whole = prepare(built), prepare(replace(build(wanted), caches_features=False))
    assert built.caches_features and (kept.submodule, whole.submodule) == ("fc", "")
    assert fit(kept) and fit(whole)
    for key, value in whole.model.state_dict().items():
        torch.testing.assert_close(kept.model.state_dict()[key], value, rtol=1e-3, atol=1e-4)
    assert kept.progress.best_metric == pytest.approx(whole.progress.best_metric, abs=0.01)
    assert set(kept.state()["model"]) == set(whole.state()["model"])


def test_kept_features_resume_bit_by_bit(base: Path, tmp_path: Path) -> None:
    def run(stop_at: int | None, resume: Path | None = None) -> Run:
        hooks = Hooks(should_stop=lambda run: run.progress.step == stop_at)
        found = assemble(finetune(base), checkpoint.load(resume) if resume else None, hooks=hooks)
        fit(found)
        return found

    whole, part = run(None), run(20)
    checkpoint.save(tmp_path / "last.pt", part.state())
    rest = run(None, tmp_path / "last.pt")
    for key, value in whole.model.state_dict().items():
        assert torch.equal(rest.model.state_dict()[key], value)


@pytest.mark.skipif(not has_int8(torch.device("cpu")), reason="no int8 products on this processor")
def test_features_in_int8_are_near_and_the_same_whatever_the_head(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached_features, "BIG", 0)
    monkeypatch.setattr(optimize, "TOLERANCE", 0.2)
    told: list[Any] = []
    run = replace(build(finetune(base)).draft, hooks=Hooks(told.append))

    def kept(run: Run) -> torch.Tensor:
        return cached_features.features(run)[1].vectors

    small = kept(run)
    assert "int8" in told[0]["message"]
    with torch.no_grad():
        run.model.get_submodule("fc").weight.zero_()  # a resumed run's has trained
    assert torch.equal(small, kept(run))
    fixed = run.recipe.placement.model_copy(update={"precision": "fp32"})
    exact = kept(replace(run, recipe=run.recipe.model_copy(update={"placement": fixed})))
    assert "int8" not in told[-1]["message"]
    assert 0 < (small - exact).norm() < optimize.TOLERANCE * exact.norm()


def test_augmentation_and_trained_layers_forbid_it(base: Path) -> None:
    run = assemble(finetune(base, augment={"name": "shift"}))
    assert any("augmentation shift" in note for note in run.notes)
    assert run.submodule == ""
    start = {"checkpoint": str(base), "method": "norm-only"}
    assert assemble(finetune(base, start=start)).submodule == ""


def test_the_command_trains_on_features(run_cli: Any, base: Path, tmp_path: Path) -> None:
    done = run_cli("finetune", "--from", base, "--freeze-backbone", "--epochs", 2, "--out", tmp_path / "run", "--json")
    assert done.returncode == 0, done.stderr
    assert '"features"' in done.stdout.splitlines()[-1]  # its share of the time
    done = run_cli("eval", tmp_path / "run", "--json")
    assert done.returncode == 0, done.stderr
    assert "fc" in models.get("resnet18").meta["head"]
