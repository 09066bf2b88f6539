"""``compare`` and ``watch`` in real processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


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
