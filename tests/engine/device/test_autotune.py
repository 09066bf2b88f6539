"""Measuring changes how a run is computed, never what: same weights before, same settings when it goes on."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from bigmodel_cli.core.errors import InterruptedRun
from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.engine.build.digest import digest
from bigmodel_cli.engine.checkpoint import checkpoint
from bigmodel_cli.engine.device import autotune
from bigmodel_cli.engine.device.autotune import Benchmark
from bigmodel_cli.engine.device.placement import Placement
from bigmodel_cli.engine.training.assemble import assemble
from bigmodel_cli.engine.training.run import Run


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BIGMODEL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "placement.json"


def assembled(resumed: dict[str, Any] | None = None, **placement: Any) -> Run:
    values = {"model": {"name": "resnet18"}, "data": {"name": "digits"}, "placement": placement}
    return assemble(resolve([Layer("test", values)]).recipe, resumed)


def test_short_runs_are_not_measured(own_cache: Path) -> None:
    values = {"model": {"name": "mlp"}, "data": {"name": "digits"}, "train": {"epochs": 1}}
    run = assemble(resolve([Layer("test", values)]).recipe)
    assert "too short" in run.placement.why
    assert not own_cache.exists()


def test_measuring_leaves_the_run_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = assembled(precision="fp32")
    monkeypatch.setattr(autotune, "MIN_RUN_SECONDS", 0.0)
    found = assembled()
    assert "measured" in found.placement.why
    assert digest(found.model) == digest(plain.model)
    assert found.model.training and all(p.grad is None for p in found.model.parameters())
    assert torch.equal(torch.get_rng_state(), _after(plain))


def _after(plain: Run) -> torch.Tensor:
    """The random state that the same seed leaves without measuring."""
    assembled(precision="fp32")
    return torch.get_rng_state()


def test_what_an_earlier_run_measured_does_not_change_a_later_one(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command and seed gave other weights where an earlier run had left its choice behind."""
    values = {"model": {"name": "resnet8"}, "data": {"name": "digits"}, "train": {"max_steps": 2}}
    recipe = resolve([Layer("test", values)]).recipe
    before = assemble(recipe).placement
    monkeypatch.setattr(autotune, "MIN_RUN_SECONDS", 0.0)
    measured = assemble(recipe).placement
    assert "measured" in measured.why and "too short" in before.why
    monkeypatch.undo()
    monkeypatch.setenv("BIGMODEL_CACHE", str(own_cache.parent))
    assert assemble(recipe).placement == before
    assert not own_cache.exists()


def test_a_fixed_precision_or_determinism_skips_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Benchmark, "run_trial", None)
    assert assembled(precision="bf16").placement.precision == "bf16"
    try:
        assert assembled(deterministic=True).placement.precision == "fp32"
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_faster_setting_with_other_numbers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune, "MIN_RUN_SECONDS", 0.0)
    monkeypatch.setattr(autotune, "_bf16_speedup", lambda: 1.0)
    real = Benchmark.run_trial

    def wrong(self: Benchmark, placement: Placement, limit: float, best: float = float("inf")) -> autotune.Trial:
        run_trial = real(self, placement, limit, best)
        if placement.precision == "bf16":  # quick, and off
            run_trial.seconds, run_trial.loss = 0.0001, run_trial.loss * 1.5
        return run_trial

    monkeypatch.setattr(Benchmark, "run_trial", wrong)
    placement = assembled().placement
    assert placement.precision == "fp32"
    assert "bf16 disagrees with fp32" in placement.why


def test_bf16_is_not_tried_where_its_products_are_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune, "MIN_RUN_SECONDS", 0.0)
    monkeypatch.setattr(autotune, "_bf16_speedup", lambda: 0.5)
    placement = assembled().placement
    assert placement.precision == "fp32"
    assert "bf16 products 0.5x" in placement.why


def test_a_signal_while_a_setting_is_tried_ends_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """What can fail there is passed over, whatever it raises; a signal, which may come there too, is not."""
    real, calls = Benchmark.run_trial, itertools.count()

    def run_trial(self: Benchmark, *arguments: Any, **named: Any) -> autotune.Trial:
        if next(calls):
            raise InterruptedRun(15, "stopped")
        return real(self, *arguments, **named)

    monkeypatch.setattr(autotune, "MIN_RUN_SECONDS", 0.0)
    monkeypatch.setattr(Benchmark, "run_trial", run_trial)
    with pytest.raises(InterruptedRun):
        assembled()
    assert not issubclass(InterruptedRun, Exception), "so that no library's own `except Exception` goes on either"


def test_a_slow_batch_is_measured_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: set[int] = set()
    real = Benchmark.time_step

    def time_step(self: Benchmark, *arguments: Any) -> Any:
        sizes.add(len(self.raw_batch["index"]))
        return real(self, *arguments)

    monkeypatch.setattr(autotune, "MIN_RUN_SECONDS", 0.0)
    monkeypatch.setattr(autotune, "TARGET_STEP_SECONDS", 0.0)
    monkeypatch.setattr(Benchmark, "time_step", time_step)
    assert "measured" in assembled().placement.why
    assert sizes == {autotune.PROBE_SAMPLES}


def test_a_resumed_run_keeps_its_placement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = assembled(precision="fp32", channels_last=False)
    state = run.state()
    state["meta"]["env"]["precision"] = "bf16"
    state["meta"]["recipe"]["placement"]["precision"] = "auto"
    checkpoint.save(tmp_path / "last.pt", state)
    monkeypatch.setattr(Benchmark, "run_trial", None)
    resumed = assembled(checkpoint.load(tmp_path / "last.pt"))
    assert (resumed.placement.precision, resumed.placement.channels_last) == ("bf16", False)


def test_texts_of_many_lengths_are_not_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled for one shape is compiled again for the next, a minute each, and batches differ in length."""
    tried: list[bool] = []

    def run_trial(self: Benchmark, placement: Placement, limit: float, best: float = float("inf")) -> autotune.Trial:
        tried.append(placement.compile)
        return autotune.Trial(placement, 1.0, 0.0, torch.zeros(1))

    monkeypatch.setattr(autotune, "MIN_RUN_SECONDS", 0.0)
    monkeypatch.setattr(autotune, "COMPILE_SECONDS", 0.0)
    monkeypatch.setattr(Benchmark, "run_trial", run_trial)
    assembled()
    assert any(tried)
    tried.clear()
    pairs = "".join(f"{'a ' * (1 + i % 5)}\tB\n" for i in range(40))
    (tmp_path / "pairs.tsv").write_text("source\ttarget\n" + pairs)
    data = {"name": "parallel_file", "path": str(tmp_path / "pairs.tsv"), "tokenizer": "word"}
    model = {"name": "transformer", "layers": 1, "heads": 2, "width": 16}
    assemble(resolve([Layer("test", {"model": model, "data": data})]).recipe)
    assert tried and not any(tried)
