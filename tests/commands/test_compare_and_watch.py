"""``compare`` and ``watch`` in real processes."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import environment
from rich.console import Console

from bigmodel_cli.commands import watch
from bigmodel_cli.core.files.event_log import read_events
from bigmodel_cli.engine.session.run_folder import RunFolder, holder_of


def lines(done: Any) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_runs_are_compared_and_watched(run_cli: Any, tmp_path: Path) -> None:
    for name, more in {
        "short": ("--epochs", 1),
        "long": ("--epochs", 15),
        "other": ("--epochs", 15, "--seed", 1),
    }.items():
        lines(run_cli("train", "mlp", "--data", "digits", *more, "--out", name, "--json"))
    lines(run_cli("export", "long", "--format", "onnx", "--json", "--seconds", 0))

    (found,) = lines(run_cli("compare", "short", "long", "--split", "test", "--json"))
    assert found["differences"] == {"train.epochs": [1, 15]} and found["samples"] == 360
    (pair,) = found["pairs"]
    assert pair["better"] == 1 and pair["p"] < 0.01 and "long is better than short" in pair["verdict"]
    page = (tmp_path / "compare.html").read_text(encoding="utf-8")
    assert "long is better than short" in page and "train.epochs" in page and page.count("<svg") >= 4

    shown = run_cli("compare", "long", "other", "long/best-onnx", "--page", "three.html")
    assert shown.returncode == 0 and (tmp_path / "three.html").exists(), shown.stderr
    assert shown.stdout.count("no difference is shown") >= 2 and "(Holm)" in shown.stdout
    assert "next: bigmodel export long/best.pt --out shipped" in shown.stderr
    (seeds,) = lines(run_cli("compare", "long", "other", "--json"))
    assert any("seed only" in note for note in seeds["notes"])
    for arguments, said in {("long",): "two or more", ("long", "nothing"): "nothing"}.items():
        refused = run_cli("compare", *arguments)
        assert refused.returncode == 2 and said in refused.stderr

    *events, status = lines(run_cli("watch", "long", "--json"))
    assert [e["event"] for e in events].count("epoch") == 15 and status["state"] == "done"
    told = run_cli("watch", "long", "--once")
    assert told.returncode == 0 and "epoch 15" in told.stdout and "done, step" in told.stdout
    assert run_cli("watch", "nowhere").returncode == 2


def test_runs_of_tables_with_other_columns_are_compared(run_cli: Any, tmp_path: Path) -> None:
    """Each model answers the first run's table, which is read by the columns of the first run."""
    rows = [f"{'good fine' if i % 2 else 'bad dull'} film {i % 7},{'yes' if i % 2 else 'no'}" for i in range(40)]
    small = ("--epochs", 1, "--set", "model.width=8", "--set", "model.filters=4", "--json")
    for name, text, label in (("a", "review", "verdict"), ("b", "body", "kind")):
        (tmp_path / f"{name}.csv").write_text(f"{text},{label}\n" + "\n".join(rows) + "\n")
        columns = ("--columns", f"text={text},label={label}")
        lines(run_cli("train", "text-cnn", "--data", f"{name}.csv", *columns, *small, "--out", name))
    (found,) = lines(run_cli("compare", "a", "b", "--json"))
    assert found["samples"] > 0 and len(found["headline"]) == 2


def test_a_run_that_is_gone_is_not_waited_for(run_cli: Any, tmp_path: Path) -> None:
    """A status that says running without a process that holds the folder: it was killed."""
    folder = tmp_path / "killed"
    folder.mkdir()
    (folder / "status.json").write_text('{"state": "running", "exit_code": null, "step": 7, "message": ""}')
    (folder / "metrics.jsonl").write_text('{"event": "epoch", "epoch": 1, "step": 7, "train_loss": 1.5}\n{"event": "ep')
    *events, status = lines(run_cli("watch", "killed", "--json"))
    assert len(events) == 1 and status["state"] == "stopped" and "gone" in status["message"]


HOSTILE = [
    {
        "event": "start",
        "model": "\x1b]0;title\x07",
        "data": "[/]",
        "epochs": "\x1b[2J",
        "total_steps": [],
        "placement": {},
    },
    {"event": "epoch", "epoch": 1, "step": "\x1b[1m", "train_loss": 10**400, "val_loss": 1e300, "val_\x1b[31m": 0.5},
    {"event": "epoch", "epoch": [1], "step": None, "train_loss": "much", "val_loss": True, "best": {}},
    {"event": "epoch"},
    {"event": "end", "steps": "x", "seconds": "long"},
    {"event": "end", "seconds": None},
    {"event": "\x1b[31m", "message": ["a"]},
]


def drawn(monkeypatch: pytest.MonkeyPatch, run: Path) -> str:
    """What the view of a run writes on a terminal with colours, without the colours of its own."""
    buffer = io.StringIO()
    view = watch.view(run, read_events(run / "metrics.jsonl"))
    Console(file=buffer, width=200, color_system=None, force_terminal=True).print(view)
    return buffer.getvalue()


def test_the_log_of_a_stranger_is_shown_and_not_interpreted(
    run_cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words where numbers belong, numbers of 400 digits, and terminal escapes in names, which a terminal would obey."""
    run = tmp_path / "run"
    run.mkdir()
    raw = "\n".join(json.dumps(event) for event in HOSTILE) + '\n{"event": "epoch", "epoch": 2, "val_loss": NaN}'
    (run / "metrics.jsonl").write_text(raw)
    (run / "status.json").write_text(json.dumps({"state": "done", "step": "\x1b[5m", "message": "\x1b]0;title\x07"}))
    text = drawn(monkeypatch, run)
    assert "\\x1b]0;title\\x07" in text and "[/]" in text
    assert all(c.isprintable() or c == "\n" for c in text), ascii(text)
    done = run_cli("watch", "run", "--once")
    assert done.returncode == 0 and "\x1b" not in done.stdout + done.stderr, done.stderr
    assert len(lines(run_cli("watch", "run", "--json"))) == len(HOSTILE) + 2


def test_who_asks_for_the_holder_is_not_taken_for_it(tmp_path: Path) -> None:
    """Two who watch a run that was killed ask at once; and the run may be another user's, to be read only."""
    with RunFolder(tmp_path / "run") as folder:
        assert f"pid {os.getpid()} " in (holder_of(folder.path) or "")
    with (folder.path / "run.lock").open() as other:
        fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)  # as `holder_of` does
        assert holder_of(folder.path) is None
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)  # negative control: as a run does
        assert holder_of(folder.path) is not None
    opened: list[int] = []
    real = os.open
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "open", lambda path, flags, *given: (opened.append(flags), real(path, flags, *given))[1])
        holder_of(folder.path)
    assert opened and not any(flags & (os.O_WRONLY | os.O_RDWR) for flags in opened)


def test_ctrl_c_ends_only_the_watching(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with RunFolder(run) as folder:
        folder.status("running", None, 3, None, "")
        ours, theirs = pty.openpty()
        child = [sys.executable, "-m", "bigmodel_cli", "watch", "run"]
        process = subprocess.Popen(child, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=theirs)
        os.close(theirs)
        seen = b""
        while b"running, step 3" not in seen:
            assert select.select([ours], [], [], 60)[0], seen
            seen += os.read(ours, 1 << 16)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
        os.close(ours)
    assert process.returncode == 0 and said.startswith(b"running, step 3"), said


def test_a_page_that_cannot_be_written_loses_no_result(run_cli: Any, tmp_path: Path) -> None:
    lines(run_cli("train", "perceptron", "--data", "digits", "--epochs", 1, "--out", "run", "--json"))
    (tmp_path / "compare.html").mkdir()
    done = run_cli("compare", "run", "run/last.pt")
    assert done.returncode == 0 and "no difference is shown" in done.stdout, done.stderr
    assert "no page: compare.html: " in done.stderr and "--page FILE" in done.stderr and "page:" not in done.stdout
    for command in (("compare", "run", "run/last.pt", "--page"), ("eval", "run", "--page"),
                    ("predict", "run", "none.png", "--out"), ("env-check", "--junit")):  # fmt: skip
        refused = run_cli(*command, "nowhere/a.csv")
        assert refused.returncode == 2 and not refused.stdout, refused.stderr
        assert "nowhere: no such folder; expected one for a.csv" in refused.stderr
    for name, said in {"digit": "the suffix names no picture", "run": "is a folder"}.items():
        refused = run_cli("data", "sample", name)
        assert refused.returncode == 2 and f"{name}: {said}" in refused.stderr
