"""SIGTERM, SIGINT and SIGUSR1 at random moments: saved, the right exit code, and the resumed run is the same run."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path

import figures
import pytest
from nursery import Nursery

from bigmodel_cli.engine.checkpoint import checkpoint

NUMBERS = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]
# Evaluation one sample at a time takes about as long as training here, so that signals meet it too.
EPOCHS = "40" if figures.SOAK else "16"
OPTIONS = ["mlp", "--data", "digits", "--precision", "fp32", "--epochs", EPOCHS, "--set", "train.eval_batch_size=1"]


def test_signals_to_the_group(tmp_path: Path) -> None:
    rng, met, slowest = random.Random(7), {"start-up": 0, "training": 0, "evaluation": 0}, 0.0
    goal = 50 if figures.SOAK else 6
    with Nursery(tmp_path) as nursery:
        clock = time.monotonic()
        code, child = nursery.run("train", *OPTIONS, "--out", "whole", "--json")
        assert code == 0, child.error
        length = time.monotonic() - clock
        expected = json.loads(child.out.read_text().splitlines()[-1])["digest"]
        tries = 0
        while sum(met.values()) < goal:
            tries += 1
            assert tries < 4 * goal, "most runs ended before their signal"
            number, folder = NUMBERS[tries % 3], tmp_path / f"run{tries}"
            child = nursery.start("train", *OPTIONS, "--out", folder, "--json")
            time.sleep(rng.uniform(0.05, length))
            if not child.running():
                assert child.wait() == 0, child.error
                continue
            sent = time.monotonic()
            child.kill(number)
            moment, took = met_in(child, folder, number), time.monotonic() - sent
            if moment is None:
                continue
            met[moment], slowest = met[moment] + 1, max(slowest, took)
            if moment == "start-up":
                continue
            code, child = nursery.run("train", "--resume", "--out", folder, "--json")
            assert code == 0, child.error
            assert json.loads(child.out.read_text().splitlines()[-1])["digest"] == expected
            log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            assert [e["epoch"] for e in log if e["event"] == "epoch"] == list(range(1, int(EPOCHS) + 1)), "each, once"
    note = ", ".join(f"{count} in {moment}" for moment, count in met.items())
    figures.record("signal to the process group", sum(met.values()), 0, f"{note}; slowest end after {slowest:.1f} s")


def met_in(child: object, folder: Path, number: int) -> str | None:
    """Where the signal met the run, judged by what it left; None where it was over already."""
    deadline = time.monotonic() + 30
    while child.running():  # type: ignore[attr-defined]
        assert time.monotonic() < deadline, "it did not stop"
        time.sleep(0.01)
    code, error = child.wait(), child.error  # type: ignore[attr-defined]
    if code == 0 or "report" in error:  # the signal came behind the last step
        return None
    if code == -number:  # before the command could say anything
        assert number != signal.SIGINT or not folder.exists()
        return "start-up"
    assert code == 128 + number and "Traceback" not in error, (code, error)
    if "nothing to save" in error or "interrupted" in error:
        assert not list(folder.glob("*.pt"))
        status = folder / "status.json"
        assert not status.exists() or "nothing to save" in json.loads(status.read_text())["message"]
        return "start-up"
    status_now = json.loads((folder / "status.json").read_text())
    state = checkpoint.load(folder / "last.pt")
    assert status_now["state"] == "interrupted" and status_now["exit_code"] == code
    assert status_now["step"] == state["progress"]["step"] > 0 and f"saved {folder}/last.pt" in error
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    start = next(event for event in events if event["event"] == "start")
    # All steps of an epoch are done and the epoch is not: it was being evaluated (or at its very last step).
    through = state["progress"]["batch_in_epoch"] == start["total_steps"] // start["epochs"]
    return "evaluation" if through else "training"


def test_negative_control_a_deaf_run_is_seen(tmp_path: Path) -> None:
    with Nursery(tmp_path) as nursery:
        child = nursery.start("train", *OPTIONS, "--epochs", "100000", "--out", "run", sabotage="deaf")
        while not (tmp_path / "run/last.pt").exists():
            time.sleep(0.01)
        child.kill(signal.SIGTERM)
        time.sleep(3)
        deaf = child.running()
        child.kill()
        child.wait()
    figures.record("signal to the process group: ignored", 1, int(deaf), control=True)
    assert deaf


@pytest.mark.parametrize("wait", [0.0, 0.02, 0.1] if figures.SOAK else [0.02])
def test_a_second_ctrl_c_stops_at_once(wait: float, tmp_path: Path) -> None:
    """A step of this model takes the better part of a second: the second signal meets it, or the save behind it."""
    model = ["mlp", "--data", "digits", "--set", "model.hidden=[3000,3000]", "--batch-size", "2000", "--epochs", "900"]
    with Nursery(tmp_path) as nursery:
        child = nursery.start("train", *model, "--precision", "fp32", "--set", "train.save_steps=1", "--out", "run")
        deadline = time.monotonic() + 100
        while not (tmp_path / "run/last.pt").exists():
            assert time.monotonic() < deadline and child.running(), child.error
            time.sleep(0.01)
        child.kill(signal.SIGINT)
        time.sleep(wait)
        if child.running():
            child.kill(signal.SIGINT)
        assert child.wait() == 130 and "Traceback" not in child.error and child.error.count("error:") == 1
        assert not list((tmp_path / "run").glob(".*.tmp"))
        for path in (tmp_path / "run").glob("*.pt"):
            checkpoint.load(path)
