"""Ends a child process with its own children, where the system keeps them together."""

from __future__ import annotations

import contextlib
import os
import subprocess

from bigmodel_cli.core.processes.stop_signals import KILL


def end(process: subprocess.Popen[str], number: int) -> None:
    """Send the signal to `process` and its children, all of one session; on Windows `process` alone is ended.

    `process` was started with ``start_new_session=True``.
    """
    with contextlib.suppress(ProcessLookupError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, number)
        elif number == KILL:
            process.kill()
        else:
            process.terminate()
