"""Starting from other weights; averaging, early stopping, clipping; every sample once an epoch; placement."""

from __future__ import annotations

import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from bigmodel_cli.core.errors import BigmodelError, InputError, MachineError
from bigmodel_cli.core.recipe import PlacementSection
from bigmodel_cli.core.registry import models
from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.core.types import ImageSpec
from bigmodel_cli.data.batches import Batches, in_order, micro_batches
from bigmodel_cli.engine.build import load
from bigmodel_cli.engine.build.digest import assert_unchanged
from bigmodel_cli.engine.build.load import TrainedModel, load_trained
from bigmodel_cli.engine.build.model import build_model
from bigmodel_cli.engine.build.transfer import transfer
from bigmodel_cli.engine.checkpoint import checkpoint
from bigmodel_cli.engine.device.placement import choose_device, choose_placement
from bigmodel_cli.engine.training.assemble import assemble
from bigmodel_cli.engine.training.loop import fit, train_step


def run_of(model: str = "mlp", **sections: Any) -> Any:
    layers = [Layer("test", {"model": {"name": model}, "train": {"epochs": 2}})]
    return assemble(resolve([*layers, *(Layer("test", {k: v}) for k, v in sections.items())]).recipe)


def saved(tmp_path: Path, model: str = "resnet18") -> TrainedModel:
    run = run_of(model)
    checkpoint.save(tmp_path / "ckpt.pt", run.state())
    return load_trained(tmp_path / "ckpt.pt")


@pytest.mark.parametrize(("channels", "word"), [(3, "repeated"), (1, "summed")])
def test_grey_and_colour_backbones_answer_alike(channels: int, word: str, tmp_path: Path) -> None:
    """A grey image gives the same features before and after the first convolution is adapted, either way."""
    trained = saved(tmp_path)
    spec: ImageSpec = trained.task.spec
    if channels == 1:  # start from a three-channel network instead
        colour = build_model(trained.recipe, spec.with_(channels=3)).eval()
        task = type(trained.task)(spec.with_(channels=3), trained.task.loss_per_sample, trained.task.augment)
        trained = TrainedModel(trained.path, colour, task, trained.recipe, trained.meta, trained.progress)
    adapted = build_model(trained.recipe, spec.with_(channels=channels))
    notes = transfer(adapted, trained, spec.with_(channels=channels))
    assert any(word in note for note in notes) and any("head kept" in note for note in notes)
    grey = torch.randn(4, 1, 8, 8)
    before = trained.model(grey.expand(-1, trained.task.spec.channels, -1, -1))
    after = adapted.eval()(grey.expand(-1, channels, -1, -1))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


def test_what_resuming_alone_needs_is_gone_before_the_model_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adam's moments are twice the weights, and would be in memory beside them."""
    run = run_of(train={"max_steps": 1}, optimizer={"name": "adam"})
    assert fit(run)
    checkpoint.save(tmp_path / "x.pt", run.state())
    moments: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []
    read, build = checkpoint.load, load.build_model

    def watched(path: Path) -> dict[str, Any]:
        state = read(path)
        moments.extend(weakref.ref(part["exp_avg"]) for part in state["optimizer"]["state"].values())
        return state

    def building(*arguments: Any) -> Any:
        alive.extend(moment() is not None for moment in moments)
        return build(*arguments)

    monkeypatch.setattr(checkpoint, "load", watched)
    monkeypatch.setattr(load, "build_model", building)
    load_trained(tmp_path / "x.pt")
    assert len(moments) == 4 and alive == [False] * 4


def test_another_set_of_classes_replaces_the_head_alone(tmp_path: Path) -> None:
    trained = saved(tmp_path)
    spec = trained.task.spec.with_(classes=("cat", "dog"))
    model = build_model(trained.recipe, spec)
    assert transfer(model, trained, spec) == ["head replaced: 10 classes in the checkpoint, 2 now"]
    ours, theirs = model.state_dict(), trained.model.state_dict()
    assert ours["fc.weight"].shape == (2, 512)
    assert all(torch.equal(ours[k], theirs[k]) for k in ours if not k.startswith("fc."))


def test_classes_are_matched_by_name() -> None:
    """Labels follow their names when the order differs; what the model never saw is -1 and counts nowhere."""
    task = run_of().task
    shuffled = task.spec.with_(classes=("9", "new", "0"))
    raw = {
        "image": torch.zeros(3, 1, 8, 8, dtype=torch.uint8),
        "label": torch.tensor([0, 1, 2]),
        "index": torch.arange(3),
    }
    assert task.for_data(shuffled).prepare(raw)["label"].tolist() == [9, -1, 0]
    sums = task.for_data(shuffled).evaluate(lambda x: torch.eye(10)[[9, 5, 3]], task.for_data(shuffled).prepare(raw))
    assert (int(sums["count"]), int(sums["correct"])) == (2, 1)


def test_the_same_classes_in_another_order_train_the_same_head(tmp_path: Path) -> None:
    trained = saved(tmp_path, "mlp")
    data = trained.task.spec.with_(classes=tuple(reversed(trained.task.spec.classes)), mean=(), std=())
    spec, _ = trained.task.adopt(trained.task.spec, data)
    assert spec.classes == trained.task.spec.classes
    assert trained.task.for_data(data).label_map == tuple(range(9, -1, -1))


def test_averaged_weights_follow_their_formula() -> None:
    run = run_of(train={"epochs": 1, "max_steps": 3, "ema_decay": 0.5})
    first = {k: v.clone() for k, v in run.model.state_dict().items()}
    steps = run.batches.steps(0)
    train_step(run, next(steps))
    # torch's AveragedModel starts at the weights of the first update, not at the random ones.
    expected = {k: v.clone() for k, v in run.model.state_dict().items()}
    assert not torch.equal(first["head.weight"], expected["head.weight"])
    for _ in range(2):
        train_step(run, next(steps))
        expected = {k: 0.5 * expected[k] + 0.5 * v for k, v in run.model.state_dict().items()}
    for key, value in run.eval_model.state_dict().items():
        torch.testing.assert_close(value, expected[key])


def test_early_stopping_and_best() -> None:
    run = run_of(
        train={"epochs": 50, "patience": 2}, optimizer={"name": "sgd", "lr": 1e-9}, schedule={"name": "constant"}
    )
    assert fit(run)
    assert run.progress.epoch - run.progress.best_epoch == 2 and run.progress.epoch < 50


def test_clipping_bounds_the_step() -> None:
    run = run_of(
        train={"epochs": 1, "clip_norm": 0.01}, optimizer={"name": "sgd", "lr": 1.0}, schedule={"name": "constant"}
    )
    before = torch.cat([p.detach().flatten().clone() for p in run.model.parameters()])
    train_step(run, next(run.batches.steps(0)))
    moved = torch.cat([p.detach().flatten() for p in run.model.parameters()]) - before
    assert moved.norm().item() == pytest.approx(0.01, rel=1e-3)


def test_every_sample_once_an_epoch_and_in_another_order() -> None:
    batches: Batches = run_of().batches
    first, second = (torch.cat([b["index"] for b in batches.steps(e)]) for e in (0, 1))
    assert torch.equal(first.sort().values, torch.arange(len(batches.source))) and not torch.equal(first, second)
    sizes = [len(b["index"]) for b in batches.steps(0)]
    assert max(sizes) - min(sizes) <= 1 and len(sizes) == batches.steps_per_epoch
    again = [b["index"] for b in batches.steps(0, start=3)]
    assert torch.equal(torch.cat(again), first[sum(sizes[:3]) :])
    assert torch.equal(
        torch.cat([b["index"] for b in in_order(batches.source, 100)]), torch.arange(len(batches.source))
    )
    pieces = [p for p, _ in micro_batches(next(batches.steps(0)), 3)]
    assert torch.equal(torch.cat([p["index"] for p in pieces]), first[: sizes[0]])


def test_frozen_tensors_that_move_are_noticed() -> None:
    model = torch.nn.Linear(2, 2)
    with (
        pytest.raises(BigmodelError, match="first weight"),
        assert_unchanged(model, frozenset(["weight"])),
    ):
        model.weight.data[0, 0] += 1


def test_full_batch_gradient_descent_is_one_step_an_epoch() -> None:
    run = run_of(optimizer={"name": "gd"})
    assert run.batches.steps_per_epoch == 1 and run.total_steps == 2


def test_devices() -> None:
    assert choose_placement(PlacementSection(device="cpu")).device.type == "cpu"
    missing = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(MachineError) as caught:
        choose_device(missing)
    assert caught.value.exit_code == 3
    with pytest.raises(InputError):
        choose_device("tpu")


def test_bf16_trains_too() -> None:
    run = run_of("resnet18", placement={"precision": "bf16"}, train={"epochs": 1, "max_steps": 3})
    steps = run.batches.steps(0)
    losses = [train_step(run, next(steps)).loss.item() for _ in range(3)]
    assert all(torch.isfinite(torch.tensor(losses)))
    assert all(p.dtype == torch.float32 for p in run.model.parameters())


def test_every_model_saves_loads_and_answers_the_same(tmp_path: Path) -> None:
    for name in ("perceptron", "mlp", "alexnet", "resnet18"):
        run = run_of(name)
        checkpoint.save(tmp_path / "x.pt", run.state())
        trained = load_trained(tmp_path / "x.pt")
        x = torch.randn(3, 1, 8, 8)
        torch.testing.assert_close(trained.model(x), run.model.eval()(x))
        assert models.get(name).meta["head"] == trained.head


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_compiled_training_is_training() -> None:
    runs = [run_of(placement={"compile": compiled}, train={"epochs": 1, "max_steps": 3}) for compiled in (False, True)]
    assert runs[1].forward is not runs[1].model
    steps = [list(run.batches.steps(0))[:3] for run in runs]
    losses = [[train_step(run, raw).loss.item() for raw in raws] for run, raws in zip(runs, steps, strict=True)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert set(runs[1].state()["model"]) == set(runs[0].state()["model"])
