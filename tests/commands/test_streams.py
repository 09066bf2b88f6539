"""Where output cannot go: a pipe that nobody reads, a stream that is closed, a full disk; and odd names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import environment

from bigmodel_cli.core.processes.cpu_count import asked_threads
from bigmodel_cli.engine.checkpoint import checkpoint

COMMAND = [sys.executable, "-m", "bigmodel_cli"]
SHORT = [["--version"], ["--help"], ["train", "--help"], ["recipes"], ["recipes", "--json"]]


def ended(arguments: list[str], stdout: int | None, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *arguments]
    pipe = subprocess.PIPE
    return subprocess.run(command, stdout=stdout, stderr=pipe, text=True, env=environment(), timeout=60, **options)


@pytest.mark.parametrize("arguments", SHORT, ids=" ".join)
def test_a_pipe_that_nobody_reads_ends_as_sigpipe_does(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = ended(arguments, writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("arguments", SHORT[1::2], ids=" ".join)
def test_a_full_disk_behind_stdout_is_the_machines_error(arguments: list[str]) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = ended(arguments, full.fileno())
    assert done.returncode == 3
    assert done.stderr == "error: stdout: No space left on device\nhint: send the output elsewhere\n"


def test_a_closed_stdout_is_no_error_and_no_file_gets_its_number(tmp_path: Path) -> None:
    done = ended(["--version"], None, preexec_fn=lambda: os.close(1))
    assert (done.returncode, done.stderr) == (0, "")
    program = (
        "from bigmodel_cli.commands.display import console\nf = open('x', 'w')\nprint('lost')\nassert f.fileno() > 2"
    )
    here = {**environment(), "PYTHONPATH": os.pathsep.join(sys.path)}
    for closed in ((0,), (1,), (2,), (0, 1, 2)):
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, env=here,
            preexec_fn=lambda closed=closed: [os.close(d) for d in closed],  # type: ignore[misc]
        )  # fmt: skip
        assert done.returncode == 0 and (tmp_path / "x").read_text() == ""


def test_a_run_whose_reader_goes_away_saves_and_its_status_says_how_it_ended(tmp_path: Path) -> None:
    """``bigmodel train --json | head``: as at SIGTERM."""
    arguments = ["train", "perceptron", "--data", "digits", "--epochs", "100000", "--precision", "fp32", "--out", "run"]
    process = subprocess.Popen(
        [*COMMAND, *arguments, "--json"], cwd=tmp_path, env=environment(), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    while json.loads(process.stdout.readline())["event"] != "epoch":
        pass
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait(timeout=60) == 141, errors
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("interrupted", 141)
    assert checkpoint.load(tmp_path / "run/last.pt")["progress"]["step"] == status["step"] > 0
    assert "hint: bigmodel train --resume --out run" in errors and "Traceback" not in errors


@pytest.mark.parametrize(
    ("given", "threads"),
    [("4", 4), ("4,2", 4), (" 3 , 2", 3), ("", None), ("0", None), ("-1", None), ("x", None), ("²", None)],
)
def test_the_threads_that_openmp_is_asked_for(given: str, threads: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert asked_threads() == threads


def test_threads_by_nesting_level_and_names_that_are_no_utf8(run_cli: Callable[..., Any], tmp_path: Path) -> None:
    run, image = os.fsdecode(b"r\xff"), os.fsdecode(b"im\xfe.png")
    done = run_cli(
        "train", "perceptron", "--max-steps", 2, "--out", run, "--json", variables={"OMP_NUM_THREADS": "4,2"}
    )
    assert done.returncode == 0, done.stderr
    start, *_, end = (json.loads(line) for line in done.stdout.splitlines())
    assert "4 threads" in start["placement"] and end["folder"] == run and (tmp_path / run / "best.pt").is_file()
    done = run_cli("eval", run)
    assert done.returncode == 0, done.stderr
    from bigmodel_cli.core.registry import data

    digits = data.get("digits")(Path()).load["train"]()
    import torch
    from torchvision.io import write_png

    write_png(digits.gather(torch.tensor([0]))["image"][0], str(tmp_path / "plain.png"))
    (tmp_path / "plain.png").rename(tmp_path / image)
    for arguments, code in (
        (["predict", run, image], 0),
        (["predict", run, image, "--json"], 0),
        (["export", run, "--format", "safetensors", "--out", "x"], 0),
        (["export", run, "--format", "safetensors", "--out", os.fsdecode(b"none\xff")], 2),
        (["predict", run, os.fsdecode(b"none\xff")], 2),
        (["train", "perceptron", "--data", os.fsdecode(b"./none\xff")], 2),
        (["eval", os.fsdecode(b"none\xff")], 2),
        (["train", os.fsdecode(b"none\xff.yaml")], 2),
        (["train", "perceptron", "--import", os.fsdecode(b"none\xff.py")], 2),
    ):
        done = run_cli(*arguments)
        assert done.returncode == code and "a bug" not in done.stderr, (arguments, done.stderr)
        assert code == 0 or r"none\xff" in done.stderr
