"""Accumulation equals the whole batch, and a resumed run equals the unbroken one, bit by bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.engine import checkpoint
from bigmodel_cli.engine.assemble import assemble
from bigmodel_cli.engine.loop import fit, settle, train_step
from bigmodel_cli.engine.run import Run
from bigmodel_cli.engine.start import digest

STEPS = 20  # two epochs of ten


def recipe(**sections: Any) -> Any:
    base: dict[str, Any] = {
        "model": {"name": "mlp", "hidden": [16], "dropout": 0.2},
        "data": {"name": "digits"},
        "augment": {"name": "shift", "pixels": 1},
        "train": {"epochs": 2, "batch_size": 130},
    }
    if "model" in sections and sections["model"]["name"] != "mlp":
        base["model"] = {}
    for name, values in sections.items():
        base[name] = {**base.get(name, {}), **values}
    return resolve([Layer("test", base)]).recipe


def trained(wanted: Any, stop_at: int | None = None, resume: Path | None = None) -> tuple[Run, list[str]]:
    """Run `wanted`, stopping after step `stop_at`; returns the run and its losses as hex."""
    run = assemble(wanted, checkpoint.load(resume) if resume else None)
    losses: list[str] = []
    run.emit = lambda event: losses.append(event["loss"].hex()) if event["event"] == "step" else None
    run.stop = lambda: run.progress.step == stop_at
    fit(run)
    return run, losses


VARIANTS = {
    "sgd": {"optimizer": {"name": "momentum", "lr": 0.05}},
    "adamw": {"optimizer": {"name": "adamw", "lr": 1e-3}},
    "adamw-ema": {
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "train": {"epochs": 2, "batch_size": 130, "ema_decay": 0.9},
    },
    "sgd-batchnorm": {
        "model": {"name": "resnet18"},
        "train": {"max_steps": 4},
        "optimizer": {"name": "sgd", "lr": 0.05},
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_resume_equals_unbroken_at_every_step(variant: str, tmp_path: Path) -> None:
    sections = VARIANTS[variant]
    wanted = recipe(**sections)
    whole, losses = trained(wanted)
    final = digest(whole.model)
    # The smallest model stops at *every* step; the others at those that differ in kind.
    stops = range(1, whole.total_steps) if variant == "sgd" else [1, whole.total_steps // 2, whole.total_steps - 1]
    for stop in stops:
        part, first = trained(wanted, stop_at=stop)
        checkpoint.save(tmp_path / "last.pt", part.state())
        torch.manual_seed(999)  # the resumed process starts with other random numbers
        rest, second = trained(wanted, resume=tmp_path / "last.pt")
        assert first + second == losses, f"stopped at step {stop}"
        assert digest(rest.model) == final
        if whole.ema is not None and rest.ema is not None:
            assert digest(whole.ema.module) == digest(rest.ema.module)


@pytest.mark.parametrize("field", ["model", "optimizer", "progress", "rng"])
def test_every_saved_field_matters(field: str, tmp_path: Path) -> None:
    """Negative control: without any one field, the resumed run is another run, or is refused."""
    wanted = recipe(optimizer={"name": "momentum", "lr": 0.05})
    whole, losses = trained(wanted)
    part, first = trained(wanted, stop_at=7)
    state = part.state()
    other = assemble(wanted)
    if field == "rng":
        state["rng"] = {"cpu": torch.Generator().manual_seed(5).get_state()}
    elif field == "progress":
        state["progress"] = {**state["progress"], "batch_in_epoch": 0}
    else:
        state[field] = other.state()[field]
    checkpoint.save(tmp_path / "last.pt", state)
    rest, second = trained(wanted, resume=tmp_path / "last.pt")
    assert (first + second, digest(rest.model)) != (losses, digest(whole.model))


def test_accumulation_equals_the_whole_batch() -> None:
    plain = {"model": {"name": "mlp", "hidden": [16], "dropout": 0.0}, "optimizer": {"name": "sgd", "lr": 0.1}}
    whole, _ = trained(recipe(**plain))
    cut, _ = trained(recipe(**plain, train={"accumulate": 4}))
    for name, tensor in whole.model.state_dict().items():
        torch.testing.assert_close(cut.model.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)


def test_out_of_memory_halves_the_micro_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = {"model": {"name": "mlp", "hidden": [16], "dropout": 0.0}, "optimizer": {"name": "sgd", "lr": 0.1}}
    _, losses = trained(recipe(**plain))
    from bigmodel_cli.tasks.image_classification import ImageClassification

    real = ImageClassification.loss

    def limited(self: Any, model: Any, batch: Any) -> Any:
        if len(batch["label"]) > 40:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, model, batch)

    monkeypatch.setattr(ImageClassification, "loss", limited)
    run = assemble(recipe(**plain))
    events: list[Any] = []
    run.emit = events.append
    fit(run)
    assert run.pieces == 4
    assert sum(e["event"] == "warning" for e in events) == 2
    steps = [e["loss"] for e in events if e["event"] == "step"]
    assert steps == pytest.approx([float.fromhex(x) for x in losses], abs=1e-5)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_non_finite_is_never_stepped_on(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from bigmodel_cli.core.errors import DivergedError

    run = assemble(recipe())
    steps = run.batches.steps(0)
    train_step(run, next(steps))
    before = digest(run.model)
    if where == "gradient":
        next(run.model.parameters()).register_hook(lambda g: g * float("inf"))
    else:
        from bigmodel_cli.core.types import LossSum
        from bigmodel_cli.tasks.image_classification import ImageClassification

        real = ImageClassification.loss
        bad = lambda self, model, batch: LossSum(real(self, model, batch).total * float("nan"), 1)  # noqa: E731
        monkeypatch.setattr(ImageClassification, "loss", bad)
    with pytest.raises(DivergedError) as caught:
        run.taken.append(train_step(run, next(steps)))
        settle(run)
    assert caught.value.exit_code == 4
    assert digest(run.model) == before
