"""Model-FLOPs utilisation: counted as the paper counts it, and shown where a run goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from bigmodel_cli.commands.display import progress
from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.engine.plan.mfu import utilisation
from bigmodel_cli.engine.training.assemble import assemble


def test_training_a_gpt_takes_six_flops_a_weight_and_the_attention(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("to be or not to be\n" * 50)
    layers, width, context = 2, 32, 16
    run = assemble(resolve([Layer("test", {
        "model": {"name": "gpt", "layers": layers, "width": width, "heads": 4},
        "data": {"name": "text_files", "path": str(tmp_path / "a.txt"), "context": context},
    })]).recipe, measure=False)  # fmt: skip
    found = utilisation(run.recipe, run.task, run.placement)
    weights = layers * 12 * width**2 + 257 * width  # PaLM, appendix B: 6 N + 12 L H Q T a token
    assert found["flops_per_unit"] == pytest.approx(6 * weights + 12 * layers * width * context, rel=0.01)
    assert 1e8 < found["peak"] < 1e14 and "measured here: a fp32 product" in found["which"]


def test_the_progress_line_tells_the_rate_and_its_share_of_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, now = progress.Clock(), 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    clock.update({"event": "start", "total_steps": 9, "step": 0, "metric": "perplexity", "unit": "tokens"})
    for step in range(1, 4):
        clock.update({"event": "step", "step": step, "loss": 1.0, "count": 500})
        now += 0.5
    assert clock.speed() == "1,000 tokens/s"
    clock.update({"event": "utilisation", "flops_per_unit": 2e6, "peak": 8e9})
    assert clock.speed() == "1,000 tokens/s, MFU 25%"
