"""The command as a user starts it, in processes of its own, killed and started twice.

The other harnesses fork it from a process that has torch loaded, which is the same
program many times as fast; here nothing is shared.
"""

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

from conftest import environment
from figures import SOAK, record

KILLS = 20 if SOAK else 1
TRAIN = (
    "train",
    "mlp",
    "--data",
    "digits",
    "--epochs",
    40 if SOAK else 10,
    "--set",
    "train.save_steps=1",
    "--set",
    "model.dropout=0.2",
)


def start(folder: Path, *words: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bigmodel_cli", *map(str, words), "--out", "run"]
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        command, cwd=folder, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def stamp(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def wait_for_another(process: subprocess.Popen[str], path: Path, old: int) -> None:
    """Until `process` has written `path` anew, or has ended."""
    while stamp(path) == old and process.poll() is None:
        time.sleep(0.005)


def digest(folder: Path) -> str:
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return str(json.loads(lines[-1])["digest"])


def test_killed_and_resumed_processes_end_at_the_same_weights(tmp_path: Path) -> None:
    """And a second process in the folder is turned away while the first is there, and no longer."""
    whole = start(tmp_path / "whole", *TRAIN)
    assert whole.wait(200) == 0
    resume: tuple[str, ...] = ()
    dice, killed = random.Random(4), 0
    for _ in range(KILLS):
        last = tmp_path / "killed" / "run" / "last.pt"
        old = stamp(last)
        process = start(tmp_path / "killed", *TRAIN, *resume)
        wait_for_another(process, last, old)
        if not resume:  # in the folder of a run that is in work, a second one is turned away
            process.send_signal(signal.SIGSTOP)  # so that it still is
            second = start(tmp_path / "killed", *TRAIN, "--resume")
            _, said = second.communicate(timeout=200)
            assert second.returncode == 3 and str(process.pid) in said and os.uname().nodename in said
            process.send_signal(signal.SIGCONT)
        time.sleep(dice.uniform(0.0, 0.05))
        process.send_signal(signal.SIGKILL)
        killed += process.wait(200) == -signal.SIGKILL
        resume = ("--resume",)
    rest = start(tmp_path / "killed", *TRAIN, "--resume")
    code, said = rest.wait(200), rest.stderr.read() if rest.stderr else ""
    assert code == 0, said
    same = digest(tmp_path / "killed") == digest(tmp_path / "whole")
    record("SIGKILL of whole processes, resumed to the same bits", killed, 0 if same else killed)
    assert same and killed == KILLS
