"""A call that does not return ends the process that is bound by a limit, and says so where it can."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

BODY = """
import ctypes, os, sys, time
from bigmodel_cli.core.processes.call_limit import bound_calls_of_server, bounded
bound_calls_of_server(lambda error: os.write(2, f"{error.what}; {error.hint}".encode()))
with bounded():
    with bounded():
        pass
    CALL
print("went on")
"""


def served(call: str, limit: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BODY.replace("CALL", call)],
        capture_output=True,
        text=True,
        env={"BIGMODEL_RUNTIME_LIMIT": limit, "PATH": ""},
        timeout=60,
    )


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGALRM")
def test_a_server_says_so_and_ends_though_its_runtime_hangs() -> None:
    done = served("time.sleep(30)", "0.2")
    assert done.returncode == 3 and "more than 0.2 s; start again" in done.stderr and not done.stdout
    done = served("pass", "0.2")
    assert done.returncode == 0 and done.stdout == "went on\n" and not done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGALRM")
def test_native_code_that_keeps_pythons_lock_is_ended_too() -> None:
    assert served("ctypes.PyDLL(None).pause()", "0.2").returncode == -signal.SIGALRM
