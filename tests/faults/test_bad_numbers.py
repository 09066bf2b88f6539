"""NaN, infinity and memory that runs out, met at a given step of a whole run: what is saved stays good."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import figures
import pytest
import torch

from bigmodel_cli.core.errors import BigmodelError, DivergedError, MachineError
from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.core.types import LossSum
from bigmodel_cli.engine.checkpoint import async_writer, checkpoint
from bigmodel_cli.engine.session.run_folder import RunFolder
from bigmodel_cli.engine.session.session import train
from bigmodel_cli.tasks.image_classification import ImageClassification


def recipe(**train_: Any) -> Any:
    values = {
        "model": {"name": "mlp", "hidden": [16], "dropout": 0.0},
        "data": {"name": "digits"},
        "placement": {"precision": "fp32"},
        "train": {"epochs": 2, "batch_size": 130, "save_steps": 1, **train_},
    }
    return resolve([Layer("test", values)]).recipe


def run(folder: Path, wanted: Any, until: int | None = None) -> tuple[list[dict[str, Any]], BigmodelError | None]:
    """The events of a run and how it ended; a healthy one ends before `until` is saved."""
    events: list[dict[str, Any]] = []

    def emit(event: dict[str, Any]) -> None:
        events.append(event)
        if until is not None and event.get("step") == until:
            raise MachineError("as far as was asked")

    try:
        train(wanted, RunFolder(folder), emit)
    except BigmodelError as error:
        return events, error
    return events, None


def inject(monkeypatch: pytest.MonkeyPatch, step: int, where: str, value: float) -> None:
    """At `step` the loss is `value`, or the gradient alone is."""
    real, calls = ImageClassification.loss, []

    def loss(self: ImageClassification, model: Any, batch: Any) -> LossSum:
        found = real(self, model, batch)
        calls.append(1)
        if len(calls) != step:
            return found
        if where == "loss":
            return LossSum(found.total * value, found.count)
        total = found.total.clone()
        total.register_hook(lambda g: g * value)
        return LossSum(total, found.count)

    monkeypatch.setattr(ImageClassification, "loss", loss)


def nan_saved(folder: Path) -> int:
    states = [checkpoint.load(path) for path in folder.glob("*.pt")]
    return sum(not all(t.isfinite().all() for t in state["model"].values()) for state in states)


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=["nan", "inf"])
def test_a_non_finite_step_is_not_taken(
    where: str, value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, saved = (2, 7, 11, 20) if figures.SOAK else (2, 11), 0
    for step in steps:
        with monkeypatch.context() as patch:
            inject(patch, step, where, value)
            _, error = run(tmp_path / f"bad{step}", recipe())
        assert isinstance(error, DivergedError) and error.exit_code == 4 and f"step {step}:" in error.line
        assert "last.pt" in (error.hint or "")
        state = checkpoint.load(tmp_path / f"bad{step}/last.pt")
        assert state["progress"]["step"] == step - 1
        run(tmp_path / f"same{step}", recipe(), until=step)
        same = checkpoint.load(tmp_path / f"same{step}/last.pt")
        assert checkpoint.digest(state["model"]) == checkpoint.digest(same["model"])
        saved += nan_saved(tmp_path / f"bad{step}")
    figures.record(f"non-finite step: {where}, {value}", len(steps), saved, "lost: checkpoints with a NaN")
    assert saved == 0


def test_negative_control_without_the_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inject(monkeypatch, 3, "gradient", float("nan"))
    monkeypatch.setattr(torch, "isfinite", lambda tensor: torch.ones_like(tensor, dtype=torch.bool))
    monkeypatch.setattr(async_writer, "require_finite", lambda state: None)
    run(tmp_path / "run", recipe())
    monkeypatch.undo()
    saved = nan_saved(tmp_path / "run")
    figures.record("non-finite step: not looked at", 1, saved, control=True)
    assert saved > 0


def test_weights_out_of_range_are_not_saved(tmp_path: Path) -> None:
    """A finite step at an absurd rate: the weights of the next state are NaN before any loss is."""
    wanted = resolve([Layer("t", recipe().to_dict()), Layer("t", {"optimizer": {"name": "sgd", "lr": 1e38}})]).recipe
    _, error = run(tmp_path / "run", wanted)
    assert isinstance(error, DivergedError)
    for path in (tmp_path / "run").glob("*.pt"):
        assert not any(t.isnan().any() for t in checkpoint.load(path)["model"].values())


def test_memory_that_runs_out_at_step_three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, error = run(tmp_path / "whole", recipe())
    assert error is None
    real, steps = ImageClassification.loss, []

    def limited(self: ImageClassification, model: Any, batch: Any) -> LossSum:
        steps.append(len(batch["label"]))
        if len(steps) > 2 and len(batch["label"]) > 40:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, model, batch)

    monkeypatch.setattr(ImageClassification, "loss", limited)
    cut, error = run(tmp_path / "cut", recipe())
    assert error is None
    losses = [[e["loss"] for e in events if e["event"] == "step"] for events in (whole, cut)]
    far = max(abs(a - b) for a, b in zip(*losses, strict=True))
    figures.record("out of memory at step 3", 1, int(far > 1e-5), f"finishes; losses differ by at most {far:.1e}")
    assert far <= 1e-5
    assert [e["message"][:13] for e in cut if e["event"] == "warning"] == ["out of memory"] * 2


def test_memory_that_never_suffices_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(self: ImageClassification, model: Any, batch: Any) -> LossSum:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(ImageClassification, "loss", none)
    _, error = run(tmp_path / "run", recipe())
    assert isinstance(error, MachineError) and error.exit_code == 3 and "micro-batch 1" in error.line
