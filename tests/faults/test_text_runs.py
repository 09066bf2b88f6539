"""Text runs that are killed: shards appear whole, and every text task trains on to the same bits."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import figures
import pytest
from nursery import Child, Nursery

from bigmodel_cli.data.token_shards.files import read_index
from bigmodel_cli.engine.checkpoint import checkpoint

GPT = ("--set", "model.layers=1", "--set", "model.heads=2", "--set", "model.width=16", "--set", "model.dropout=0.1")
PLAIN = ("--precision", "fp32", "--batch-size", 4, "--set", "train.save_steps=1")


def corpus(folder: Path) -> None:
    """A text, conversations and pairs of answers, and a model to start from."""
    (folder / "a.txt").write_text("".join(f"line {i} of {i * i}\n" for i in range(200)))
    talks = [[{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"{i}!"}] for i in range(60)]
    (folder / "chat.jsonl").write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    rows = [{"prompt": talk[:1], "chosen": talk[1:], "rejected": "no"} for talk in talks]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    reviews = [f"a {'fine' if i % 3 else 'dull'} film {i % 7},{'yes' if i % 3 else 'no'}\n" for i in range(90)]
    (folder / "reviews.csv").write_text("text,label\n" + "".join(reviews))
    sentences = [f"{'a b ' * (i % 4 + 1)}{i % 9}\tB A {i % 9}\n" for i in range(60)]
    (folder / "sentences.tsv").write_text("source\ttarget\n" + "".join(sentences))


RUNS: dict[str, tuple[Any, ...]] = {
    "shards": ("train", "gpt", *GPT, "--data", "./shards", "--set", "data.context=16", "--max-steps", 40),
    "chat": ("finetune", "--from", "start", "--data", "./chat.jsonl", "--epochs", 3),
    "chat, packed": ("finetune", "--from", "start", "--data", "./chat.jsonl", "--epochs", 6, "--set", "data.pack=true",
                     "--set", "data.context=64"),
    "pairs": ("finetune", "--from", "start", "--data", "./pairs.jsonl", "--epochs", 3),
    "reviews": ("train", "text-encoder", "--set", "model.width=16", "--set", "augment.name=word_dropout",
                "--data", "./reviews.csv", "--epochs", 3),
    "translation": ("train", "transformer", "--set", "model.width=16", "--set", "data.tokenizer=word",
                    "--data", "./sentences.tsv", "--epochs", 3),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("text")
    corpus(made)
    with Nursery(made) as nursery:
        for words in (
            ("data", "tokenize", "a.txt", "--tokenizer", "byte", "--processes", 1),
            ("train", "gpt", *GPT, "--data", "./a.txt", "--max-steps", 4, "--out", "start"),
        ):
            code, child = nursery.run(*words)
            assert code == 0, child.error
    return made


@pytest.mark.parametrize("kind", RUNS if figures.SOAK else ["pairs"])
def test_killed_and_resumed_it_ends_in_the_same_bits(kind: str, folder: Path) -> None:
    rng, kills, goal = random.Random(len(kind)), 0, 12 if figures.SOAK else 1
    with Nursery(folder) as nursery:
        code, child = nursery.run(*RUNS[kind], *PLAIN, "--out", f"{kind}-whole", "--json")
        assert code == 0, child.error
        expected = digest(child)
        run = folder / f"{kind}-killed"
        while True:
            again = (run / "last.pt").exists()
            first = [*RUNS[kind], *PLAIN, *(["--overwrite"] if run.exists() else [])]
            child = nursery.start(*(["train", "--resume"] if again else first), "--out", run, "--json")
            if kills < goal:
                until_it_saves(child, run)
                time.sleep(rng.uniform(0, 0.05))
                child.kill()
            if child.wait() == 0:
                break
            kills += 1
            for path in run.glob("*.pt"):
                checkpoint.load(path)
    assert digest(child) == expected and kills >= 1
    figures.record(f"SIGKILL of a text run, resumed to the same bits: {kind}", kills, 0)


def digest(child: Child) -> str:
    return str(json.loads(child.out.read_text().splitlines()[-1])["digest"])


def until_it_saves(child: Child, run: Path) -> None:
    """Until its checkpoint is a new one, or it has ended."""
    last, deadline = run / "last.pt", time.monotonic() + 60
    old = last.stat().st_mtime_ns if last.exists() else 0
    while child.running() and not (last.exists() and last.stat().st_mtime_ns != old):
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_killed_while_it_tokenizes_it_leaves_nothing_under_the_final_name(folder: Path) -> None:
    rng, goal, met = random.Random(3), 40 if figures.SOAK else 2, 0
    (folder / "large.txt").write_text("".join(f"line {i} of {i * i}\n" for i in range(50_000)))
    words = ("data", "tokenize", "large.txt", "--tokenizer", "byte", "--shard-tokens", 50_000, "--processes", 1)
    with Nursery(folder) as nursery:
        clock = time.monotonic()
        code, child = nursery.run(*words, "--out", "whole")
        assert code == 0, child.error
        length, whole = time.monotonic() - clock, files(folder / "whole")
        for i in range(goal):
            child = nursery.start(*words, "--out", f"cut{i}")
            time.sleep(rng.uniform(0.2, 1.0) * length)
            child.kill()
            killed = child.wait() == -signal.SIGKILL
            out = folder / f"cut{i}"
            met += killed and not out.exists()
            if out.exists():  # then it is whole
                assert files(out) == whole and read_index(out, 8).damaged_files() == []
            code, child = nursery.run(*words, "--out", out, *(["--overwrite"] if out.exists() else []))
            assert code == 0 and files(out) == whole, child.error
            assert not list(folder.glob(".cut*"))
    assert met >= 1
    figures.record("SIGKILL while tokenizing", met, 0, "nothing under the final name, the next start cleans up")


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL] if figures.SOAK else [signal.SIGINT, signal.SIGKILL]
)
def test_a_signal_while_several_processes_tokenize_ends_them_all(number: int, folder: Path) -> None:
    text = "".join(f"line {i} of {i * i}\n" for i in range(20_000))
    (folder / "wide").mkdir(exist_ok=True)
    for i in range(60):
        (folder / "wide" / f"{i}.txt").write_text(text)
    with Nursery(folder) as nursery:
        child = nursery.start("data", "tokenize", "wide", "--tokenizer", "char", "--processes", 2, "--out", "never")
        deadline = time.monotonic() + 60
        while not list(folder.glob(".never.*")) and child.running():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        if number == signal.SIGKILL:  # of the parent alone, as the kernel does where memory runs out
            time.sleep(1)
            os.kill(child.pid, number)
        else:
            child.kill(number)
        code = child.wait()
        assert code in (128 + number, -number) and not (folder / "never").exists(), child.error
        assert "Traceback" not in child.error, child.error
        deadline = time.monotonic() + 20
        while [p for p in Path("/proc").glob("[0-9]*/stat") if group(p) == child.pid]:
            assert time.monotonic() < deadline, "a process has no parent and goes on"
            time.sleep(0.05)


def group(stat: Path) -> int:
    """The process group in a process's stat file; 0 where it has gone, or is a zombie."""
    try:
        state, _, pgrp = stat.read_text().rpartition(")")[2].split()[:3]
    except (OSError, ValueError):
        return 0
    return 0 if state == "Z" else int(pgrp)
