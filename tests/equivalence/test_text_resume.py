"""The promises of the loop, kept for text: resumed at any step equals unbroken; accumulated equals whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import figures
import pytest
import torch

from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.core.types import TextSpec
from bigmodel_cli.data.token_shards.files import ShardWriter
from bigmodel_cli.engine.build.digest import digest
from bigmodel_cli.engine.checkpoint import checkpoint
from bigmodel_cli.engine.training.assemble import assemble, execute
from bigmodel_cli.engine.training.run import Hooks, Run

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
        "train": {"epochs": 2, "batch_size": 14},
    }


def pairs(folder: Path) -> dict[str, Any]:
    (folder / "a.tsv").write_text("source\ttarget\n" + "".join(f"a b {i % 5}\tB A {i % 5}\n" for i in range(40)))
    return {
        "model": {"name": "transformer", "layers": 1, "heads": 2, "width": 16},
        "data": {"name": "parallel_file", "path": str(folder / "a.tsv"), "tokenizer": "word"},
        "train": {"epochs": 2, "batch_size": 6},
    }


GPT = {"name": "gpt", "layers": 1, "heads": 2, "width": 16, "dropout": 0.1}


def shards(folder: Path) -> dict[str, Any]:
    spec = TextSpec("byte", (), 16)
    with ShardWriter(folder / "shards", spec, 301) as writer:
        for i in range(50):
            writer.add(b"".join(bytes((97 + (i * j) % 26, 0)) for j in range(30)) + b"\0\1", [31], 30)
        writer.finish({})
    return {
        "model": GPT,
        "data": {"name": "token_shards", "path": str(folder / "shards"), "context": 16, "separate": True},
        "train": {"epochs": 2, "batch_size": 15},
    }


def conversations(folder: Path) -> dict[str, Any]:
    turns = [[("user", f"{i} + {i}"), ("assistant", f"{2 * i}"), ("user", "sure?"), ("assistant", "yes")][: 2 + i % 3]
             for i in range(40)]  # fmt: skip
    rows = [{"messages": [{"role": role, "content": said} for role, said in talk]} for talk in turns]
    (folder / "chat.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {
        "model": GPT,
        "data": {"name": "chat_file", "path": str(folder / "chat.jsonl"), "context": 64, "val_share": 0.1},
        "train": {"epochs": 2, "batch_size": 6},
    }


def packed(folder: Path) -> dict[str, Any]:
    values = conversations(folder)
    return {**values, "data": {**values["data"], "context": 128, "pack": True}, "train": {"epochs": 2, "batch_size": 3}}


def preferences(folder: Path) -> dict[str, Any]:
    rows = [{"prompt": f"{i % 7} is", "chosen": " a number", "rejected": f" no {i}"} for i in range(40)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    start = trained(conversations(folder), stop_at=2)[0]
    checkpoint.save(folder / "start.pt", start.state())
    return {
        "model": GPT,
        "data": {"name": "preference_file", "path": str(folder / "pairs.jsonl"), "val_share": 0.1},
        "start": {"checkpoint": str(folder / "start.pt"), "method": "dpo"},
        "train": {"epochs": 2, "batch_size": 6},
    }


def trained(values: dict[str, Any], stop_at: int | None = None, resume: Path | None = None) -> tuple[Run, list[str]]:
    values = {**values, "placement": {"precision": "fp32", "device": "cpu"}}
    losses: list[str] = []
    hooks = Hooks(
        on_event=lambda event: losses.append(event["loss"].hex()) if event["event"] == "step" else None,
        should_stop=lambda run: run.progress.step == stop_at,
    )
    recipe = resolve([Layer("test", values)]).recipe
    run = assemble(recipe, checkpoint.load(resume) if resume else None, hooks=hooks)
    execute(run)
    return run, losses


@pytest.mark.parametrize("build", [language, sentiment, pairs, shards, conversations, packed, preferences])
def test_resumed_at_every_step_equals_unbroken(build: Any, tmp_path: Path) -> None:
    values = build(tmp_path)
    if build is preferences:  # what the start said is in the checkpoints: the start is not needed any more
        gone = trained(values, stop_at=2)[0].state()
        checkpoint.save(tmp_path / "last.pt", gone)
        (tmp_path / "start.pt").rename(tmp_path / "away.pt")
        trained(values, resume=tmp_path / "last.pt")
        (tmp_path / "away.pt").rename(tmp_path / "start.pt")
    whole, losses = trained(values)
    assert whole.total_steps == STEPS and len(losses) == STEPS
    every = range(1, STEPS) if figures.SOAK or build in (language, sentiment, pairs) else (1, 5, 6, 11)
    for step in every:
        stopped, first = trained(values, stop_at=step)
        checkpoint.save(tmp_path / "last.pt", stopped.state())
        resumed, rest = trained(values, resume=tmp_path / "last.pt")
        assert first + rest == losses, step
        assert digest(resumed.model) == digest(whole.model), step
    tried = len(every)
    figures.record(f"stop at every step, resumed to the same bits: {build.__name__}", tried, 0, "losses by float.hex")
    # The control: without its generator's state a run with dropout is another run.
    state = trained(values, stop_at=3)[0].state()
    state["rng"]["cpu"] = torch.Generator().manual_seed(99).get_state()
    checkpoint.save(tmp_path / "last.pt", state)
    assert trained(values, resume=tmp_path / "last.pt")[1] != losses[3:]


@pytest.mark.parametrize("build", [language, pairs, conversations, preferences])
def test_accumulated_equals_whole(build: Any, tmp_path: Path) -> None:
    values = build(tmp_path)
    values["model"] = {**values["model"], "dropout": 0.0}
    values["optimizer"] = {"name": "sgd", "lr": 0.1}
    whole, _ = trained(values, stop_at=3)
    values["train"] |= {"accumulate": 3}
    pieces, _ = trained(values, stop_at=3)
    for a, b in zip(whole.model.parameters(), pieces.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
