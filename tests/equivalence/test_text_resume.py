"""The promises of the loop, kept for text: resumed at any step equals unbroken; accumulated equals whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.engine import checkpoint
from bigmodel_cli.engine.assemble import assemble
from bigmodel_cli.engine.loop import fit
from bigmodel_cli.engine.run import Run
from bigmodel_cli.engine.start import digest

STEPS = 12  # two epochs of six


def language(folder: Path) -> dict[str, Any]:
    (folder / "a.txt").write_text("".join(f"line {i * i} of a small text\n" for i in range(60)))
    return {
        "model": {"name": "gpt", "layers": 2, "heads": 2, "width": 16, "position": "rope", "dropout": 0.1},
        "data": {"name": "text_files", "path": str(folder / "a.txt"), "context": 16},
        "train": {"epochs": 2, "batch_size": 17},
    }


def sentiment(folder: Path) -> dict[str, Any]:
    rows = [
        f"{'good fine' if i % 2 else 'bad dull'} film {i % 7} and {i % 5},{'yes' if i % 2 else 'no'}" for i in range(80)
    ]
    (folder / "a.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    return {
        "model": {"name": "text-cnn", "width": 8, "filters": 4},
        "augment": {"name": "word_dropout"},
        "data": {"name": "labelled_file", "path": str(folder / "a.csv")},
        "train": {"epochs": 2, "batch_size": 12},
    }


def pairs(folder: Path) -> dict[str, Any]:
    (folder / "a.tsv").write_text("source\ttarget\n" + "".join(f"a b {i % 5}\tB A {i % 5}\n" for i in range(40)))
    return {
        "model": {"name": "transformer", "layers": 1, "heads": 2, "width": 16},
        "data": {"name": "parallel_file", "path": str(folder / "a.tsv"), "tokenizer": "word"},
        "train": {"epochs": 2, "batch_size": 6},
    }


def trained(values: dict[str, Any], stop_at: int | None = None, resume: Path | None = None) -> tuple[Run, list[str]]:
    values = {**values, "placement": {"precision": "fp32", "device": "cpu"}}
    run = assemble(resolve([Layer("test", values)]).recipe, checkpoint.load(resume) if resume else None)
    losses: list[str] = []
    run.emit = lambda event: losses.append(event["loss"].hex()) if event["event"] == "step" else None
    run.stop = lambda: run.progress.step == stop_at
    fit(run)
    return run, losses


@pytest.mark.parametrize("build", [language, sentiment, pairs])
def test_resumed_at_every_step_equals_unbroken(build: Any, tmp_path: Path) -> None:
    values = build(tmp_path)
    whole, losses = trained(values)
    assert whole.total_steps == STEPS and len(losses) == STEPS
    for step in range(1, STEPS):
        stopped, first = trained(values, stop_at=step)
        checkpoint.save(tmp_path / "last.pt", stopped.state())
        resumed, rest = trained(values, resume=tmp_path / "last.pt")
        assert first + rest == losses, step
        assert digest(resumed.model) == digest(whole.model), step
    # The control: without its generator's state a run with dropout is another run.
    state = trained(values, stop_at=3)[0].state()
    state["rng"]["cpu"] = torch.Generator().manual_seed(99).get_state()
    checkpoint.save(tmp_path / "last.pt", state)
    assert trained(values, resume=tmp_path / "last.pt")[1] != losses[3:]


@pytest.mark.parametrize("build", [language, pairs])
def test_accumulated_equals_whole(build: Any, tmp_path: Path) -> None:
    values = build(tmp_path)
    values["model"]["dropout"] = 0.0
    values["optimizer"] = {"name": "sgd", "lr": 0.1}
    whole, _ = trained(values, stop_at=3)
    values["train"] |= {"accumulate": 3}
    pieces, _ = trained(values, stop_at=3)
    for a, b in zip(whole.model.parameters(), pieces.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
