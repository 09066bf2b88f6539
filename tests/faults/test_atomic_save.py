"""Killed at random moments: the checkpoint is always whole and never older than what was reported as saved."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import figures
import pytest
import torch
from conftest import environment
from nursery import Nursery

from bigmodel_cli.core.errors import BigmodelError
from bigmodel_cli.core.files.atomic_files import remove_temporary_files
from bigmodel_cli.engine.checkpoint import checkpoint

SAVER = Path(__file__).with_name("saver.py")


def kills(folder: Path, count: int, during: int, broken: bool = False) -> tuple[int, int, int]:
    """Kill a saving process at least `count` times, `during` of them in a save: kills, those in a save, and losses."""
    command = [sys.executable, str(SAVER), "broken" if broken else "whole"]
    env = {**environment(), "PYTHONPATH": os.pathsep.join(sys.path)}
    rng, tried, hit, lost = random.Random(11), 0, 0, 0
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as nursery:
        assert nursery.stdin is not None and nursery.stdout is not None
        while tried < count or hit < during:
            for path in folder.iterdir():
                path.unlink()
            nursery.stdin.write(f"{folder}\n")
            nursery.stdin.flush()
            lines: list[str] = []
            while "saved 1" not in lines or not any(line.startswith("pid") for line in lines):
                lines.append(nursery.stdout.readline().strip())
            time.sleep(rng.uniform(0, 0.06))
            pid = next(int(line.split()[1]) for line in lines if line.startswith("pid"))
            os.kill(pid, signal.SIGKILL)
            while lines[-1] != "dead":
                lines.append(nursery.stdout.readline().strip())
            begun, saved = (
                max(int(line.split()[1]) for line in lines if line.startswith(word)) for word in ("begin", "saved")
            )
            tried, hit, lost = tried + 1, hit + (begun > saved), lost + _lost(folder, saved, begun)
            if not broken:
                assert len(list(folder.glob(".*.tmp"))) <= 1
                remove_temporary_files(folder)
                assert not list(folder.glob(".*"))
    return tried, hit, lost


def _lost(folder: Path, saved: int, begun: int) -> bool:
    """Whether a file there is broken, or the newest is not one of the steps it may be of."""
    try:
        if any(_torn(path) for path in folder.glob("*.pt")):
            return True
        _, found, skipped = checkpoint.newest_valid(folder)
    except BigmodelError:
        return True
    step = found["progress"]["step"]
    right = torch.equal(found["model"]["w"], torch.full_like(found["model"]["w"], float(step)))
    return bool(skipped) or step not in (saved, begun) or not right


def _torn(path: Path) -> bool:
    try:
        torch.load(path, weights_only=True)
    except Exception:
        return True
    return False


def test_sigkill_while_saving_never_breaks_the_checkpoint(tmp_path: Path) -> None:
    tried, hit, lost = kills(tmp_path, 200 if figures.SOAK else 15, 80 if figures.SOAK else 5)
    figures.record("SIGKILL while saving", tried, lost, f"{hit} of them during a save")
    assert lost == 0


def test_negative_control_saving_in_place_breaks_it(tmp_path: Path) -> None:
    tried, hit, lost = kills(tmp_path, 40 if figures.SOAK else 5, 30 if figures.SOAK else 3, broken=True)
    figures.record("SIGKILL while saving: in place", tried, lost, f"{hit} of them during a save", control=True)
    assert lost > 0


OPTIONS = ["mlp", "--data", "digits", "--precision", "fp32", "--set", "train.save_steps=1"]
SHORT = ["--epochs", "12"]


def test_killed_again_and_again_ends_in_the_same_bits(tmp_path: Path) -> None:
    """kill -9 of the real command at random moments, then --resume, until it is through."""
    rng, done, chains = random.Random(5), 0, 0
    goal = 60 if figures.SOAK else 20
    with Nursery(tmp_path) as nursery:
        code, child = nursery.run("train", *OPTIONS, *SHORT, "--out", "whole", "--json")
        assert code == 0, child.error
        expected = json.loads(child.out.read_text().splitlines()[-1])["digest"]
        while done < goal:
            chains += 1
            killed, digest = chain(nursery, tmp_path / f"part{chains}", rng, goal - done)
            done += killed
            assert digest == expected
    figures.record(
        "SIGKILL of the command, resumed to the same bits",
        done,
        0,
        f"runs: {chains}; every file loads after every kill",
    )


def chain(nursery: Nursery, folder: Path, rng: random.Random, most: int) -> tuple[int, str]:
    """One run, killed up to `most` times on its way: the kills, and the digest of its weights."""
    killed = 0
    while True:
        again = (folder / "last.pt").exists()
        how = ["--resume"] if again else [*OPTIONS, *SHORT, *(["--overwrite"] if folder.exists() else [])]
        child = nursery.start("train", *how, "--out", folder, "--json")
        if killed < most:
            _until_it_trains(child, folder)
            time.sleep(rng.uniform(0, 0.25))
            if child.running():
                child.kill()
        code = child.wait()
        if code == 0:
            assert not list(folder.glob(".*.tmp"))
            events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            assert [e["epoch"] for e in events if e["event"] == "epoch"] == list(range(1, 13)), "each epoch, once"
            state = checkpoint.load(folder / "last.pt")
            best = checkpoint.load(folder / "best.pt")
            assert best["progress"]["epoch"] == state["progress"]["best_epoch"]
            return killed, str(json.loads(child.out.read_text().splitlines()[-1])["digest"])
        assert code == -signal.SIGKILL, child.error
        killed += 1
        drafts = [file.name.rsplit(".", 2)[0] for file in folder.glob(".*.tmp")]
        assert len(drafts) == len(set(drafts)), "one draft of a file at most: those of an earlier kill are gone"
        for path in folder.glob("*.pt"):
            checkpoint.load(path)


def _until_it_trains(child: Any, folder: Path) -> None:
    status, deadline = folder / "status.json", time.monotonic() + 60
    started = time.time()
    while child.running() and not (status.exists() and status.stat().st_mtime > started - 0.3):
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("damaged", [1, 3])
def test_resume_takes_the_newest_whole_checkpoint(damaged: int, tmp_path: Path) -> None:
    with Nursery(tmp_path) as nursery:
        code, child = nursery.run("train", *OPTIONS[:-2], "--epochs", "2", "--max-steps", "15", "--out", "run")
        assert code == 0, child.error
        state = checkpoint.load(tmp_path / "run/last.pt")
        for i, name in enumerate(("older.pt", "best.pt", "last.pt")):
            (tmp_path / "run" / name).unlink(missing_ok=True)
            made = {**state, "meta": {**state["meta"], "created": state["meta"]["created"] + i}}
            checkpoint.save(tmp_path / "run" / name, made)
        for name in ("last.pt", "best.pt", "older.pt")[:damaged]:
            raw = bytearray((tmp_path / "run" / name).read_bytes())
            raw[len(raw) // 2] ^= 4
            (tmp_path / "run" / name).write_bytes(raw)
        code, child = nursery.run("train", "--resume", "--out", "run")
        if damaged == 1:
            assert code == 0 and child.error.count("skipped ") == 1 and "last.pt" in child.error
        else:
            assert code == 2 and "no valid checkpoint" in child.error and "Traceback" not in child.error
