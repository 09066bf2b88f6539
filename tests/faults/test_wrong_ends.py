"""Ends that used to be wrong: a lost terminal, a signal that is ignored, a suspended rank, a resumed fine-tuning."""

from __future__ import annotations

import dataclasses
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import environment
from nursery import Nursery

from bigmodel_cli.core.errors import InterruptedRun, MachineError, as_machine_error
from bigmodel_cli.core.files.owners import current_owner
from bigmodel_cli.engine.checkpoint import checkpoint
from bigmodel_cli.engine.distributed.launcher import exit_code, root_failures

BIGMODEL = Path(sys.executable).with_name("bigmodel")
LONG = ["train", "mlp", "--data", "digits", "--epochs", "100000", "--out", "run"]


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 250
    while not path.exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)


def test_a_lost_terminal_saves_and_ends(tmp_path: Path) -> None:
    """The window is closed: the kernel sends SIGHUP, and every write to the terminal fails from then on."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [BIGMODEL, *LONG], cwd=tmp_path, env=environment(), stdin=theirs, stdout=theirs, stderr=theirs,
        start_new_session=True, preexec_fn=lambda: __import__("fcntl").ioctl(0, 0x540E, 0),
    )  # fmt: skip
    os.close(theirs)
    os.set_blocking(ours, False)
    deadline = time.monotonic() + 250
    while not (tmp_path / "run/last.pt").exists():
        assert time.monotonic() < deadline and process.poll() is None
        try:
            os.read(ours, 1 << 16)  # as a terminal does, or the writer waits for ever
        except BlockingIOError:
            time.sleep(0.02)
    os.close(ours)
    assert process.wait(timeout=60) == 128 + signal.SIGHUP
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert status["state"] == "interrupted" and status["exit_code"] == 129
    assert checkpoint.load(tmp_path / "run/last.pt")["progress"]["step"] == status["step"]


LEADER = """
import fcntl, os, time
from bigmodel_cli.commands.isolation import supervised
fcntl.ioctl(0, 0x540E, 0)
if (child := supervised._fork()) == 0:
    print("ready", flush=True)
    time.sleep(60)
    os._exit(0)
os._exit(-supervised._wait(child))
"""


def test_a_lost_terminal_ends_the_child_of_its_first_process() -> None:
    """``ssh -t HOST bigmodel export ...``: the kernel tells the first process of the session alone."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", LEADER]
    with subprocess.Popen(
        command, env=environment(), stdin=theirs, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        os.close(theirs)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        os.close(ours)
        assert process.wait(timeout=30) == signal.SIGHUP


IGNORES = """
import os, signal, sys
from bigmodel_cli.core.errors import InterruptedRun
from bigmodel_cli.engine.session.signals import StopFlag
number = int(sys.argv[1])
signal.signal(number, signal.SIG_IGN)
with StopFlag() as stop:
    os.kill(os.getpid(), number)
    assert not stop.requested
    assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, signal.SIG_IGN)  # negative control
assert signal.getsignal(number) == signal.SIG_IGN
signal.signal(number, signal.SIG_DFL)
try:
    with StopFlag() as stop:
        os.kill(os.getpid(), number)
except InterruptedRun:  # negative control
    print("heard", end="")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP], ids=lambda n: n.name)
def test_a_signal_that_is_ignored_stays_ignored(number: signal.Signals) -> None:
    """``nohup`` and a script's background job start a process that ignores it; a child, whose signals are its own."""
    child = [sys.executable, "-c", IGNORES, str(int(number))]
    done = subprocess.run(child, env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "heard"), done.stderr


UNHEARD = """
import signal, subprocess
from bigmodel_cli.core.processes.children import hear_of_children
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
unheard = subprocess.run(["false"]).returncode
hear_of_children()
print(unheard, subprocess.run(["false"]).returncode, end="")
"""


def test_an_ignored_sigchld_hides_no_childs_end() -> None:
    """A daemon may pass it on; Python then takes every child for one that ended well, which is the control here."""
    done = subprocess.run([sys.executable, "-c", UNHEARD], env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "0 1"), done.stderr


def test_a_background_job_of_a_script_does_not_hear_ctrl_c(tmp_path: Path) -> None:
    command = f"trap '' INT; exec {BIGMODEL} {' '.join(LONG)}"
    process = subprocess.Popen(["sh", "-c", command], cwd=tmp_path, env=environment(), stderr=subprocess.DEVNULL)
    wait_for(tmp_path / "run/last.pt", process)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    process.terminate()
    assert process.wait(timeout=60) == 143


TWICE = """
import os, signal, sys
from bigmodel_cli import cli
from bigmodel_cli.commands.display import console
write = console.err.print
def interrupted(*what, **how):
    os.kill(os.getpid(), signal.SIGINT)
    write(*what, **how)
console.err.print, sys.argv = interrupted, ["bigmodel"]
cli.app = lambda **how: os.kill(os.getpid(), signal.SIGINT)
cli.main()
"""


def test_a_second_ctrl_c_while_the_first_is_told(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", TWICE], env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "error: interrupted\n")


def test_fine_tuning_goes_on_as_its_help_says(run_cli: Callable[..., Any], tmp_path: Path) -> None:
    assert run_cli("train", "perceptron", "--data", "digits", "--max-steps", 4, "--out", "first").returncode == 0
    tune = ["finetune", "--from", "first", "--data", "digits"]
    assert run_cli(*tune, "--epochs", 1, "--out", "second").returncode == 0
    done = run_cli("finetune", "--resume", "--out", "second", "--epochs", 2)
    assert done.returncode == 0, done.stderr
    assert checkpoint.load(tmp_path / "second/last.pt")["progress"]["epoch"] == 2
    gone = run_cli("finetune", "--resume", "--out", "third")
    assert gone.returncode == 2 and "no run to resume" in gone.stderr
    gone = run_cli("finetune", "--resume")
    assert gone.returncode == 2 and "no run named" in gone.stderr


def test_a_suspended_rank_is_not_said_to_be_out_of_memory() -> None:
    """Rank 1 is suspended: rank 0 gives up on it with exit code 3, and the launcher kills rank 1 in the end."""
    codes = {0: 3, 1: -signal.SIGKILL}
    assert exit_code(root_failures(codes, False, running={1})) == 3
    with pytest.raises(MachineError, match="rank 1 was killed by SIGKILL") as killed:  # negative control
        exit_code(root_failures(codes, False))
    assert "memory" not in str(killed.value)
    with pytest.raises(MachineError, match="the kernel was out of memory"):
        exit_code({1: -signal.SIGKILL}, out_of_memory=True)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OSError(28, "No space left on device", "/x/y"), 3, "/x/y: No space left on device"),
        (PermissionError(13, "Permission denied", "f"), 3, "f: Permission denied"),
        (MemoryError(), 3, "out of memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"), 3, "memory"),
        (RuntimeError("CUDA error: out of memory"), 3, "out of memory"),
        (ModuleNotFoundError("No module named 'sacrebleu'", name="sacrebleu"), 3, "sacrebleu is not installed"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_what_the_machine_did_is_not_our_bug(error: BaseException, code: int, words: str) -> None:
    found = as_machine_error(error)
    assert found is not None and found.exit_code == code and words in found.line


@pytest.mark.parametrize("error", [KeyError("x"), ZeroDivisionError(), RuntimeError("shapes differ"), TypeError()])
def test_what_is_our_bug_stays_one(error: Exception) -> None:
    """Negative control."""
    assert as_machine_error(error) is None


def test_a_signal_amid_a_librarys_code_is_no_bug() -> None:
    """Optuna's ``finally`` reads a name that it had no time to bind."""
    stop = InterruptedRun(signal.SIGINT, "interrupted")

    def library() -> None:
        try:
            raise stop
        finally:
            raise UnboundLocalError("cannot access local variable")

    with pytest.raises(UnboundLocalError) as found:
        library()
    assert as_machine_error(found.value) is stop


def test_a_run_folder_that_is_gone_is_not_the_users_mistake(tmp_path: Path) -> None:
    """Renamed while the run writes there; its page read the log, and that was the error told."""
    with Nursery(tmp_path) as nursery:
        child = nursery.start(*LONG)
        deadline = time.monotonic() + 100
        while not (tmp_path / "run/report.html").exists():
            assert time.monotonic() < deadline and child.running(), child.error
            time.sleep(0.02)
        (tmp_path / "run").rename(tmp_path / "elsewhere")
        assert child.wait() == 3
    assert "error: run" in child.error and "No such file" in child.error, child.error
    assert "Traceback" not in child.error and not (tmp_path / "run").exists()


def test_output_that_is_gone_does_not_lose_the_run(tmp_path: Path) -> None:
    """A full disk behind stdout: the run ends with its checkpoint, and not as a bug."""
    with Nursery(tmp_path) as nursery:
        code, child = nursery.run("train", "perceptron", "--data", "digits", "--max-steps", 3, "--out", "run")
        assert code == 0, child.error
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        done = subprocess.run(
            [BIGMODEL, "eval", "run", "--json"], cwd=tmp_path, env=environment(), stdout=full, stderr=subprocess.PIPE
        )
    assert done.returncode == 3 and b"a bug" not in done.stderr, done.stderr


def test_a_killed_compress_blocks_nothing(run_cli: Callable[..., Any], tmp_path: Path) -> None:
    """Killed before its first whole file, it leaves drafts, after which its folder counted as somebody else's."""
    assert run_cli("train", "mlp", "--data", "digits", "--max-steps", 3, "--out", "start").returncode == 0
    ended = subprocess.Popen(["true"])
    ended.wait()
    gone = dataclasses.replace(current_owner(), pid=ended.pid)
    (tmp_path / "small" / f".export.{gone.token}.new").mkdir(parents=True)
    (tmp_path / "small" / ".model.pt.12-0123abcd.tmp").write_text("{")
    done = run_cli("compress", "start", "--method", "fp16", "--out", "small")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "small").iterdir()} == {"model.pt", "point.json"}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/.notes").write_text("somebody's")
    for how in (["--method", "fp16"], ["--max-drop", "1"]):  # negative control
        done = run_cli("compress", "start", *how, "--out", "mine")
        assert done.returncode == 2 and "already exists" in done.stderr, done.stderr
