"""Two hundred misuses: none of them ends as "a bug in bigmodel", whatever the user or the machine did.

A quick run tries every eighth of them, `make soak` all.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import figures
import numpy as np
import pytest
from PIL import Image

CODES = (0, 1, 2, 3, 4)  # 1 is also a comparison that failed: the words decide
VALUES = ["-1", "0", "1e400", "nan", "x" * 500, "[]", "{}", "null", "\x1b[31m", "../..", "", "1e-3", "9" * 30, "true"]
FIELDS = ["model.hidden", "data.val_share", "optimizer.lr", "schedule.warmup", "train.epochs", "train.eval_batch_size"]
WRONG_FILES = [
    "empty", "noise.pt", "folder", "pipe", "dangling", "locked.pt", "text.txt", "image.png", "broken.png", "zip.pt",
    "run/recipe.yaml", "run/metrics.jsonl", "halfrun", "export.json", "no/such/file", "a\nb", "x" * 300, "bad.json",
    "bad.csv", "bad.yaml", "deep.json", "run/last.pt/x", "~nobody/x", "npz.npz",
]  # fmt: skip


def cases() -> Iterator[list[str]]:
    """Every misuse, as arguments."""
    for file in WRONG_FILES:
        for command in ("eval", "predict", "finetune --from", "export", "checkpoint show", "serve", "train"):
            tail = ["--out", "o", "--max-steps", "1"] if command in ("train", "finetune --from") else []
            yield [*command.split(), file, *tail]
    for i, value in enumerate(VALUES):
        for field in FIELDS[i % 3 :: 3]:
            yield ["train", "mlp", "--data", "digits", "--max-steps", "1", "--set", f"{field}={value}", "--out", "o"]
    yield from (
        ["train", "mlp", "--data", file, "--max-steps", "1", "--out", "o"]
        for file in (
            "empty",
            "folder",
            "noise.pt",
            "text.txt",
            "bad.csv",
            "bad.json",
            "pipe",
            "images",
            "https://",
            "hf:",
        )
    )
    yield from (
        ["study", "bad.yaml"], ["study", "dots.yaml"], ["study", "run/recipe.yaml"], ["tune", "run/recipe.yaml"],
        ["tune", "bad.yaml"], ["plan", "nothing"], ["plan", "mlp", "--set", "x"], ["generate", "run"],
        ["generate", "run", "hello"], ["explain", "run"], ["explain", "run", "broken.png"], ["explain", "run", "pipe"],
        ["compress", "run", "--method", "none"], ["compress", "run", "--target-size", "0MB"], ["compress", "halfrun"],
        ["compress", "run", "--method", "prune", "--set", "compress.ratio=7", "--out", "o"], ["reproduce", "halfrun"],
        ["reproduce", "run", "--out", "run"], ["verify-resume", "bad.yaml"], ["checkpoint", "migrate", "noise.pt"],
        ["checkpoint", "consolidate", "run/last.pt", "--out", "run"], ["data", "inspect", "folder"],
        ["data", "inspect", "bad.csv"], ["data", "tokenize", "noise.pt", "--out", "o"], ["data", "index", "*.none"],
        ["data", "tokenize", "text.txt", "--out", "text.txt"], ["data", "tokenize", "text.txt", "--out", "no/o"],
        ["data", "sample", "digit"], ["data", "sample", "folder"], ["data", "sample", "no/x.png"],
        ["env-check", "--junit", "no/x.xml"], ["explain", "run", "image.png", "--out", "no/x.html"],
        ["predict", "run", "broken.png"], ["predict", "run", "text.txt"], ["predict", "run", "folder"],
        ["predict", "run"], ["eval", "run", "--split", "none"], ["eval", "run", "--metric", "none"],
        ["eval", "run", "--data", "bad.csv"], ["export", "run", "--format", "none"], ["train", "mlp", "--data", "hf:"],
        ["export", "run", "--format", "onnx", "--out", "no/o"],
        ["export", "run", "--format", "onnx", "--out", "text.txt"],
        ["serve", "run"], ["serve", "halfrun", "--port", "99999"],
        ["serve", "run", "--port", "-1"],
        ["train", "--resume", "--out", "halfrun"], ["train", "--resume", "--out", "folder"],
        ["train", "mlp", "--out", "text.txt"], ["train", "mlp", "--out", "text.txt/x"],
        ["train", "mlp", "--nproc", "x"],
        ["train", "mlp", "--nnodes", "2"], ["train", "mlp", "--rdzv", "nowhere"], ["train", "mlp", "--log", "none"],
        ["train", "--import", "noise.pt", "mlp"], ["train", "--import", "bad.csv", "mlp"], ["recipe"], ["models", "x"],
        ["env-check", "--require", ""], ["recipe", "schema", "x"], ["--import"], ["none"], ["train", "--none"],
    )  # fmt: skip


ALL = list(cases())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A folder of wrong files and one small run, and the nursery that runs commands in it."""
    from nursery import Nursery

    folder = tmp_path_factory.mktemp("misuse") / "work"
    folder.mkdir()
    with Nursery(folder) as nursery:
        code, child = nursery.run("train", "perceptron", "--data", "digits", "--max-steps", "2", "--out", "run")
        assert code == 0, child.error
        fill(folder)
        yield nursery


def fill(folder: Path) -> None:
    for name in ("folder", "halfrun", "images/cat", "images/dog"):
        (folder / name).mkdir(parents=True)
    (folder / "halfrun/status.json").write_text("{")
    (folder / "halfrun/recipe.yaml").write_text("model: {name: mlp}\n")
    (folder / "halfrun/last.pt").symlink_to("gone")
    (folder / "empty").touch()
    (folder / "noise.pt").write_bytes(np.random.default_rng(0).bytes(3000))
    os.mkfifo(folder / "pipe")
    (folder / "dangling").symlink_to("gone")
    (folder / "locked.pt").write_bytes(b"PK\3\4")
    (folder / "text.txt").write_text("a text\n")
    Image.new("RGB", (8, 8)).save(folder / "image.png")
    (folder / "broken.png").write_bytes((folder / "image.png").read_bytes()[:40])
    (folder / "images/cat/a.png").write_bytes(b"\x89PNG")
    Image.new("RGB", (8, 8)).save(folder / "images/dog/b.png")
    np.savez(folder / "npz.npz", a=np.zeros(3))
    (folder / "zip.pt").write_bytes((folder / "npz.npz").read_bytes())
    (folder / "export.json").write_text("{}")
    (folder / "bad.json").write_text('{"text": ')
    (folder / "bad.csv").write_text('text,label\n"a,b\n\0,\n')
    (folder / "bad.yaml").write_text("model: [\n")
    (folder / "dots.yaml").write_text("title: x\nruns: {../victim: {model: {name: mlp}}}\n")
    (folder / "deep.json").write_text("[" * 100_000)


def test_there_are_two_hundred() -> None:
    assert len({tuple(arguments) for arguments in ALL}) >= 200


@pytest.mark.parametrize("command", sorted({arguments[0] for arguments in ALL}))
def test_no_misuse_is_called_a_bug(command: str, place: Any) -> None:
    tried = [arguments for arguments in (ALL if figures.SOAK else ALL[::8]) if arguments[0] == command]
    lost = [problem for arguments in tried if (problem := problem_of(arguments, place))]
    if tried:
        figures.record(f"misuse of a command: {command}", len(tried), len(lost), "lost: it was called a bug, or hung")
    assert lost == []


def problem_of(arguments: list[str], place: Any) -> str | None:
    """What the command with these arguments did wrong, in a folder without what those before it wrote."""
    for name in ("o", "no"):
        shutil.rmtree(place.folder / name, ignore_errors=True)
    child = place.start(*arguments)
    deadline = time.monotonic() + 100
    while child.running():
        if time.monotonic() > deadline:
            child.kill()
            return f"{arguments}: it hangs"
        time.sleep(0.01)
    code = child.wait()
    if "a bug in bigmodel" in child.error or "Traceback" in child.error or code not in CODES:
        return f"{arguments}: {code}: {child.error}"
    return None


def test_a_bug_is_still_called_one(run_cli: Callable[..., Any]) -> None:
    """Negative control."""
    done = run_cli("train", "perceptron", "--data", "digits", "--max-steps", 1, "--out", "o", sabotage="bug")
    assert done.returncode == 1 and "a bug in bigmodel" in done.stderr
