"""When a process started, which tells it from a later one of the same number."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

QUERY_LIMITED_INFORMATION, ACCESS_DENIED = 0x1000, 5  # winnt.h, winerror.h


def process_start(pid: int) -> int | None:
    """When the process started, in ticks of the system; None if there is none, 0 where the system does not tell.

    A zombie is none: it has ended, and an init of a container may never ask for its exit code.
    Linux may hide other users' processes (``hidepid`` of proc(5)), and a container or macOS has no /proc.
    """
    if os.name == "nt":
        return _on_windows(pid)
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else int(fields[19])
    except (OSError, ValueError, IndexError):
        return _unseen(pid)


def _unseen(pid: int) -> int | None:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except PermissionError:  # another user's
        pass
    return 0


def _on_windows(pid: int) -> int | None:
    """By GetProcessTimes, in 100 ns; ``os.kill(pid, 0)`` would send Ctrl-C there."""
    kernel = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined, unused-ignore]
    kernel.OpenProcess.restype = ctypes.c_void_p
    handle = ctypes.c_void_p(kernel.OpenProcess(QUERY_LIMITED_INFORMATION, False, pid))
    if not handle:
        denied = ctypes.get_last_error() == ACCESS_DENIED  # type: ignore[attr-defined, unused-ignore]
        return 0 if denied else None
    times = (ctypes.c_uint64 * 4)()  # created, exited, in the kernel, in the program
    parts = [ctypes.byref(times, 8 * i) for i in range(4)]
    try:
        known = kernel.GetProcessTimes(handle, *parts)
    finally:
        kernel.CloseHandle(handle)
    if not known:
        return 0
    return None if times[1] else int(times[0])
