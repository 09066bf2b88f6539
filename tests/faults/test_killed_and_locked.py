"""Real processes, killed at random moments: the checkpoint is always whole, and the chain ends in the same bits."""

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

import pytest
from conftest import environment

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.engine import checkpoint
from bigmodel_cli.engine.durable import clean_temporary

SOAK = bool(os.environ.get("BIGMODEL_SOAK"))
HERE = Path(__file__).parents[1] / "fuzz"

SAVER = """
import sys
sys.path[:0] = [{here!r}]
from pathlib import Path
from test_checkpoint_files import checkpoint, state
import torch
if {broken}:
    checkpoint.save = lambda path, values: torch.save(values, path)
big = state(0, 4_000_000)
print("ready", flush=True)
while True:
    checkpoint.save(Path({path!r}), big)
    print("saved", flush=True)
"""


def kills_that_broke(path: Path, kills: int, broken: bool) -> int:
    """Kill a process that saves without end, `kills` times; how often the file could not be read afterwards."""
    rng, unreadable = random.Random(11), 0
    program = SAVER.format(here=str(HERE), path=str(path), broken=broken)
    for _ in range(kills):
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment())
        assert process.stdout is not None
        for _ in range(2):
            process.stdout.readline()
        time.sleep(rng.uniform(0, 0.15))
        process.kill()
        process.wait()
        try:
            if broken:  # in-place saves carry no digest: whether the zip is whole is the question
                checkpoint.read(path)
            else:
                checkpoint.load(path)
        except InputError:
            unreadable += 1
        assert len(list(path.parent.glob(".*.tmp"))) <= 1
        clean_temporary(path.parent)
    return unreadable


def test_sigkill_while_saving_never_breaks_the_checkpoint(tmp_path: Path) -> None:
    assert kills_that_broke(tmp_path / "last.pt", 200 if SOAK else 6, broken=False) == 0


def test_negative_control_saving_in_place_breaks_it(tmp_path: Path) -> None:
    assert kills_that_broke(tmp_path / "last.pt", 40 if SOAK else 8, broken=True) > 0


def test_killed_again_and_again_ends_in_the_same_bits(tmp_path: Path, run_cli: Any) -> None:
    """kill -9 of the real command at random moments, then --resume, until it is through."""
    options = [
        "mlp",
        "--data",
        "digits",
        "--epochs",
        "80",
        "--set",
        "model.hidden=[256]",
        "--set",
        "train.save_steps=3",
    ]
    whole = run_cli("train", *options, "--out", "whole", "--json")
    assert whole.returncode == 0, whole.stderr
    expected = json.loads(whole.stdout.splitlines()[-1])["digest"]
    rng, kills = random.Random(5), 0
    command = [sys.executable, "-m", "bigmodel_cli", "train", *options, "--out", "part", "--json"]
    while kills < (60 if SOAK else 4):
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        metrics = tmp_path / "part/metrics.jsonl"
        began, size = time.monotonic(), metrics.stat().st_size if metrics.exists() else 0
        while process.poll() is None and (not metrics.exists() or metrics.stat().st_size <= size):
            assert time.monotonic() - began < 60
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.2))
        process.kill()
        _, error = process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, error
        kills += 1
        if (tmp_path / "part/last.pt").exists():
            checkpoint.load(tmp_path / "part/last.pt")
            command = [sys.executable, "-m", "bigmodel_cli", "train", "--resume", "--out", "part", "--json"]
        else:
            command[-1:] = ["--json", "--overwrite"] if "--overwrite" not in command else ["--overwrite"]
    done = run_cli("train", "--resume", "--out", "part", "--json")
    assert done.returncode == 0, done.stderr
    assert kills > 0 and json.loads(done.stdout.splitlines()[-1])["digest"] == expected
    assert not list((tmp_path / "part").glob(".*.tmp"))


LOCKER = """
import sys, time
from pathlib import Path
from bigmodel_cli.core.errors import BigmodelError
from bigmodel_cli.engine.folder import RunFolder
try:
    with RunFolder(Path(sys.argv[1])):
        print("won", flush=True)
        time.sleep(60)
except BigmodelError as error:
    print(error.line)
    sys.exit(error.exit_code)
"""


def test_one_writer_a_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LOCKER, str(tmp_path / "run")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) for _ in range(8)]
    try:
        deadline = time.monotonic() + 100
        while sum(p.poll() is None for p in processes) > 1:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        (winner,) = [p for p in processes if p.poll() is None]
        losers = [p for p in processes if p is not winner]
        assert {p.returncode for p in losers} == {3}
        assert all(f"pid {winner.pid} on" in p.stdout.read() for p in losers if p.stdout)
        winner.kill()
        winner.wait()
    finally:
        for p in processes:
            p.kill()
    # The kernel lets a dead holder's lock go: nothing has to be cleaned up by hand.
    (tmp_path / "run/metrics.jsonl").unlink()
    after = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
    assert after.stdout is not None and after.stdout.readline() == "won\n"
    after.kill()
    after.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signals_to_the_group_save_and_exit(number: signal.Signals, tmp_path: Path) -> None:
    options = ["train", "mlp", "--data", "digits", "--epochs", "100000", "--out", "run"]
    command = [sys.executable, "-m", "bigmodel_cli", *options]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "run/last.pt").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    sent = time.monotonic()
    os.killpg(process.pid, number)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 128 + number and "saved run/last.pt" in error and "Traceback" not in error
    assert time.monotonic() - sent < 5
    assert checkpoint.load(tmp_path / "run/last.pt")["progress"]["step"] > 0
