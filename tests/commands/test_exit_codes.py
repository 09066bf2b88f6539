"""The table of exit codes, case by case, with real processes: 0, 1, 2, 3, 4, 129, 130, 143(141: test_streams.py)."""

from __future__ import annotations

import fcntl
import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from nursery import Nursery

TRAIN = ["train", "mlp", "--data", "digits", "--set", "model.hidden=[8]", "--out", "run"]


def status(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "status.json").read_text())  # type: ignore[no-any-return]


def test_0_done_and_the_promised_file_is_there(run_cli: Any, tmp_path: Path) -> None:
    done = run_cli(*TRAIN, "--max-steps", 2)
    assert done.returncode == 0 and status(tmp_path / "run")["exit_code"] == 0
    assert Path(tmp_path, status(tmp_path / "run")["checkpoint"]).is_file()
    assert run_cli("export", "run", "--format", "safetensors", "--out", "x").returncode == 0
    assert (tmp_path / "x/model.safetensors").is_file()
    # Once it is done, to go on is no error.
    assert run_cli(*TRAIN, "--max-steps", 2, "--resume").returncode == 0


def test_1_a_bug_leaves_its_traceback_in_the_run(run_cli: Any, tmp_path: Path) -> None:
    done = run_cli(*TRAIN, sabotage="bug")
    first, hint = done.stderr.splitlines()[-2:]
    assert done.returncode == 1 and done.stdout == ""
    assert first == "error: a bug in bigmodel: ZeroDivisionError: division by zero"
    assert hint.startswith("hint: the traceback is in run/crash.log") and "Traceback" not in done.stderr
    assert "return 1 / 0" in (tmp_path / "run/crash.log").read_text()
    assert status(tmp_path / "run")["exit_code"] == 1
    done = run_cli("--debug", *TRAIN, "--overwrite", sabotage="bug")
    assert done.returncode == 70  # the exception itself leaves the command, see nursery.py; Python makes it 1
    assert "Traceback" in done.stderr and "return 1 / 0" in done.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "used").mkdir()
    (tmp_path / "used/notes.txt").write_text("mine")
    (tmp_path / "noise.pt").write_bytes(random.Random(0).randbytes(3000))
    (tmp_path / "tab.yaml").write_text("model:\n\tname: mlp\n")
    (tmp_path / "digit.png").write_bytes(b"\x89PNG\r\n")
    return tmp_path


BAD = [
    ["train", "tab.yaml"],
    ["train", "mlp", "--out", "digit.png"],
    ["train", "mlp", "--resume", "--out", "used"],
    ["predict", "noise.pt", "digit.png"],
    ["checkpoint", "show", "digit.png"],
    ["reproduce", "used"],
]


@pytest.mark.parametrize("arguments", BAD, ids=" ".join)
def test_2_bad_input_is_one_line_with_a_way_out_and_leaves_nothing(
    arguments: list[str], run_cli: Any, folder: Path
) -> None:
    before = sorted(folder.rglob("*"))
    done = run_cli(*arguments, timeout=60)  # 2 to 4 s on a quiet machine, most of it importing torch
    lines = done.stderr.splitlines()
    assert done.returncode == 2, done.stderr
    assert lines[0].startswith("error: ") and len(lines[0]) <= 207 and "Traceback" not in done.stderr
    assert "; " in lines[0] or any(line.startswith("hint: ") for line in lines[1:]), "no way out is named"
    assert len(lines) <= 2 and done.stdout == "" and sorted(folder.rglob("*")) == before


def test_2_a_flag_that_is_none(run_cli: Any) -> None:
    done = run_cli("train", "mlp", "--epoch", "3")
    assert done.returncode == 2 and "--epochs" in done.stderr and "Traceback" not in done.stderr


def test_3_the_machine(run_cli: Any, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with (tmp_path / "run/run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run_cli(*TRAIN, "--overwrite", "--max-steps", 1)
        assert done.returncode == 3 and "hint: " in done.stderr and "Traceback" not in done.stderr
    closed = tmp_path / "file"
    closed.write_text("")
    done = run_cli("train", "mlp", "--max-steps", 1, "--out", "file/run")
    assert done.returncode in (2, 3) and "file/run" in done.stderr and "Traceback" not in done.stderr
    assert run_cli(*TRAIN, "--overwrite", "--max-steps", 1).returncode == 0
    done = run_cli("export", "run", "--format", "onnx", sabotage="no-onnx")
    assert done.returncode == 3 and "[onnx]'" in done.stderr and "Traceback" not in done.stderr


def test_4_diverged(run_cli: Any, tmp_path: Path) -> None:
    done = run_cli(*TRAIN, "--optimizer", "sgd", "--lr", "1e30", "--schedule", "constant")
    assert done.returncode == 4 and "hint: " in done.stderr and "Traceback" not in done.stderr
    assert status(tmp_path / "run")["exit_code"] == 4


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_129_130_and_143_interrupted_with_a_checkpoint(number: signal.Signals, code: int, tmp_path: Path) -> None:
    with Nursery(tmp_path) as nursery:
        child = nursery.start(*TRAIN, "--epochs", "100000", "--precision", "fp32")
        deadline = time.monotonic() + 90
        while not (tmp_path / "run/last.pt").exists():
            assert time.monotonic() < deadline and child.running(), child.error
            time.sleep(0.005)
        child.kill(number)
        assert child.wait() == code and "hint: bigmodel train --resume --out run" in child.error
    assert status(tmp_path / "run")["exit_code"] == code and "Traceback" not in child.error
