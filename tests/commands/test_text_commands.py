"""Text through the real commands: train, kill, resume, evaluate, generate, predict, export."""

from __future__ import annotations

import csv
import json
import signal
import time
from pathlib import Path

import pytest
from conftest import Run
from nursery import Nursery


def test_a_language_model_from_a_file_to_a_proven_export(run_cli: Run, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("to be or not to be, that is the question\n" * 60)
    small = ("--set", "model.width=16", "--set", "model.layers=1", "--set", "placement.precision=fp32")
    train = ("train", "gpt", "--data", "./a.txt", "--epochs", "12", "--batch-size", "8", "--lr", "2e-2", *small)
    train += ("--set", "data.context=16", "--set", "train.save_steps=20", "--out", "run")
    with Nursery(tmp_path) as nursery:
        child = nursery.start(*train)
        end = time.monotonic() + 120
        while not (tmp_path / "run" / "last.pt").exists() and time.monotonic() < end:
            time.sleep(0.005)
        child.kill()
        assert child.wait() == -signal.SIGKILL  # before it was through
    resumed = run_cli("train", "--resume", "--out", "run", "--json")
    assert resumed.returncode == 0, resumed.stderr
    last = json.loads(resumed.stdout.splitlines()[-1])
    assert last["val_perplexity"] < 20  # 257 at first
    found = run_cli("eval", "run", "--json")
    figures = json.loads(found.stdout)["headline"]
    assert figures["perplexity"]["low"] <= figures["perplexity"]["value"] <= figures["perplexity"]["high"]
    said = run_cli("generate", "run", "--prompt", "to be", "--max-tokens", "30", "--temperature", "0")
    assert said.returncode == 0 and said.stdout.startswith("to be") and len(said.stdout) >= 30, said.stderr
    wrong = run_cli("predict", "run", "a.txt")
    assert wrong.returncode == 2 and "bigmodel generate" in wrong.stderr
    proven = run_cli("export", "run", "--format", "pt2", "--samples", "4", "--seconds", 0, "--json")
    assert json.loads(proven.stdout)["passed"], proven.stderr


def test_a_text_classifier_answers_lines_of_a_file(run_cli: Run, tmp_path: Path) -> None:
    rows = [f"{'good fine' if i % 2 else 'bad dull'} film {i % 7},{'yes' if i % 2 else 'no'}" for i in range(80)]
    (tmp_path / "a.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    trained = run_cli(
        "train", "text-cnn", "--data", "./a.csv", "--epochs", "10", "--batch-size", "8", "--lr", "1e-2", "--out", "run",
        "--set", "model.width=8", "--set", "model.filters=8", "--set", "placement.precision=fp32",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    (tmp_path / "lines.txt").write_text("a good film\n\nbad and dull\n")
    answers = [json.loads(line) for line in run_cli("predict", "run", "lines.txt", "--json").stdout.splitlines()]
    assert [a["file"] for a in answers] == ["lines.txt:1", "lines.txt:2", "lines.txt:3"]
    assert (answers[0]["class"], answers[2]["class"]) == ("yes", "no")
    given = run_cli("predict", "run", "--text", "a good film", "--json")
    top = json.loads(given.stdout)["top"]
    assert [t["class"] for t in top] == [t["class"] for t in answers[0]["top"]], given.stderr
    expected = [t["probability"] for t in answers[0]["top"]]  # of a padded batch
    assert [t["probability"] for t in top] == pytest.approx(expected, abs=1e-5)
    piped = run_cli("predict", "run", "-", "--json", input=Path(tmp_path / "lines.txt").read_text())
    assert [json.loads(line)["class"] for line in piped.stdout.splitlines()] == [a["class"] for a in answers]
    assert run_cli("predict", "run").returncode == run_cli("predict", "run", "-", input="").returncode == 2
    (tmp_path / "long.txt").write_text("a good film\n" + "x" * 1_000_001 + "\nbad and dull\n")
    long = run_cli("predict", "run", "long.txt", "--json")
    assert long.returncode == 2 and len(long.stdout.splitlines()) == 1, "those before it are answered"
    assert "long.txt:2: 1,000,001 characters; expected at most 1,000,000" in long.stderr
    piped = run_cli("predict", "run", "-", "--json", input=(tmp_path / "long.txt").read_text())
    assert piped.returncode == 2 and "text 2: 1,000,001 characters" in piped.stderr
    assert [json.loads(line)["file"] for line in piped.stdout.splitlines()] == ["text 1", "text 3"]
    kept = run_cli("predict", "run", "lines.txt", "--out", "answers.csv")
    assert kept.returncode == 0 and kept.stdout.strip() == "3 predictions: answers.csv", kept.stderr
    rows = list(csv.DictReader((tmp_path / "answers.csv").read_text().splitlines()))
    assert [(r["name"], r["prediction"]) for r in rows] == [(a["file"], a["class"]) for a in answers]
    for row, answer in zip(rows, answers, strict=True):
        shares = {t["class"]: t["probability"] for t in answer["top"]}
        assert [float(row[f"probability {c}"]) for c in ("no", "yes")] == pytest.approx([shares["no"], shares["yes"]])
    assert run_cli("predict", "run", "lines.txt", "--out", "answers.txt").returncode == 2
    missing = run_cli("predict", "run", "a good film")
    assert missing.returncode == 2 and 'by --text "a good film"' in missing.stderr
    for data in ("nowhere.csv", "./nowhere"):
        gone = run_cli("train", "text-cnn", "--data", data)
        assert gone.returncode == 2 and f"--data {data}: no such file or folder" in gone.stderr
    turned = run_cli("eval", "run", "--tta")
    assert turned.returncode == 2 and "expected a model of images" in turned.stderr
    refused = run_cli("generate", "run")
    assert refused.returncode == 2 and "expected a language model" in refused.stderr
    mixed = run_cli("train", "text-cnn", "--data", "./a.csv", "--set", "augment.name=shift", "--out", "other")
    assert mixed.returncode == 2 and "not for text" in mixed.stderr
