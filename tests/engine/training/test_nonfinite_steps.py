"""``train.skip_nonfinite``: bad steps are left out, and after too many in a row the run goes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bigmodel_cli.core.errors import DivergedError
from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.core.types import LossSum
from bigmodel_cli.engine.build.digest import digest
from bigmodel_cli.engine.checkpoint import checkpoint
from bigmodel_cli.engine.device.placement import Placement
from bigmodel_cli.engine.session.run_folder import RunFolder
from bigmodel_cli.engine.session.session import train
from bigmodel_cli.engine.training import loop
from bigmodel_cli.engine.training.assemble import assemble
from bigmodel_cli.engine.training.run import Hooks, Run
from bigmodel_cli.tasks.image_classification import ImageClassification


def recipe(skip: int, model: str = "mlp", **train_: Any) -> Any:
    values = {
        "model": {"name": model},
        "data": {"name": "digits"},
        "train": {"epochs": 2, "batch_size": 130, "skip_nonfinite": skip, **train_},
    }
    return resolve([Layer("test", values)]).recipe


def poison(monkeypatch: pytest.MonkeyPatch, calls: range) -> list[int]:
    """The loss is NaN in these calls of it, counted over the whole run."""
    real, made = ImageClassification.loss, []

    def loss(self: ImageClassification, model: Any, batch: Any) -> LossSum:
        made.append(1)
        found = real(self, model, batch)
        return LossSum(found.total * float("nan"), found.count) if len(made) in calls else found

    monkeypatch.setattr(ImageClassification, "loss", loss)
    return made


def no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bigmodel_cli.engine.training.build_run.autotune", lambda section, placement, *rest: placement)


def test_bad_steps_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    no_measuring(monkeypatch)
    events: list[Any] = []
    run = assemble(recipe(skip=3), hooks=Hooks(events.append))
    poison(monkeypatch, range(5, 7))
    assert loop.fit(run)
    assert [e["message"].split(":")[0] for e in events if e["event"] == "warning"] == ["step 5", "step 6"]
    assert all(torch.isfinite(p).all() for p in run.model.parameters())
    assert run.progress.step == run.total_steps


def test_batchnorm_does_not_remember_a_bad_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    no_measuring(monkeypatch)
    run = assemble(recipe(skip=1, model="resnet18"))
    before = digest(run.model)
    raw = next(run.batches.steps(0))
    next(run.model.parameters()).register_hook(lambda g: g * float("inf"))
    run.pending_steps.append(loop.train_step(run, raw))
    loop.settle(run)
    assert digest(run.model) == before


def test_too_many_go_back_to_the_checkpoint_at_half_the_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_measuring(monkeypatch)
    poison(monkeypatch, range(14, 17))  # steps 14 to 16, in the second epoch; the checkpoint is of step 10
    events: list[Any] = []
    outcome = train(recipe(skip=2), RunFolder(tmp_path / "run", "x"), events.append)
    messages = [e["message"] for e in events if e["event"] == "warning"]
    assert "back to step 10, learning rate times 0.5" in messages[-1]
    assert outcome.run.progress.lr_scale == 0.5
    assert checkpoint.load(tmp_path / "run" / "last.pt")["progress"]["lr_scale"] == 0.5
    assert outcome.run.progress.step == outcome.run.total_steps


def test_a_run_that_always_diverges_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_measuring(monkeypatch)
    poison(monkeypatch, range(14, 10_000))
    with pytest.raises(DivergedError):
        train(recipe(skip=1), RunFolder(tmp_path / "run", "x"), lambda event: None)
    state = checkpoint.load(tmp_path / "run" / "last.pt")
    assert all(torch.isfinite(t).all() for t in state["model"].values())


@pytest.mark.parametrize("optimizer", ["adamw", "momentum"])
def test_a_fused_optimizer_skips_on_the_device(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What CUDA does: the flag is never read before the step, and results come one step later."""
    no_measuring(monkeypatch)
    monkeypatch.setattr(Placement, "lag", 1)
    values = {"model": {"name": "mlp"}, "data": {"name": "digits"}, "optimizer": {"name": optimizer, "lr": 0.01}}
    run: Run = assemble(resolve([Layer("test", values)]).recipe)
    steps = run.batches.steps(0)
    run.pending_steps.append(loop.train_step(run, next(steps)))
    before = digest(run.model)
    hook = next(run.model.parameters()).register_hook(lambda g: g * float("nan"))
    run.pending_steps.append(loop.train_step(run, next(steps)))
    hook.remove()
    loop.settle(run, leave=1)  # the good one
    assert digest(run.model) == before
    with pytest.raises(DivergedError):
        loop.settle(run)
