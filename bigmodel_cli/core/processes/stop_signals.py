"""The signals that end a process, on a system that has them: Windows has no SIGHUP, SIGUSR1, SIGPIPE or SIGKILL."""

from __future__ import annotations

import signal

SIGPIPE = 13
"""What the exit code 141 of a closed pipe is made of, also where there is no such signal."""
NAMES = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP", "SIGBREAK")
STOP_SIGNALS: tuple[signal.Signals, ...] = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))
"""What asks a run to save and stop. SIGBREAK is Ctrl-Break, the one of them that Windows sends to another process."""
LOST_TERMINAL = getattr(signal, "SIGHUP", None)
KILL = getattr(signal, "SIGKILL", signal.SIGTERM)
"""Ends a process at once; on Windows SIGTERM does."""


def signal_name(number: int) -> str:
    """``SIGSEGV`` for 11."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
