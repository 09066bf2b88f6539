"""The memory of this machine and of this process, as Linux, macOS or Windows tells it.

Of a container or service with a limit, its limit is the memory of the machine.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from pathlib import Path

from bigmodel_cli.core.processes import cgroups

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


def memory_total() -> int:
    """Bytes of memory that this process may have: of the machine, or of the limit of its container.

    Raises:
        OSError: the system does not tell.
    """
    if os.name == "nt":
        return _windows_memory()[1]
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(physical, cgroups.memory_limit() or physical)


def memory_available() -> int:
    """Bytes of memory that are free or can be reclaimed; all of it where the system does not tell.

    Raises:
        OSError: the system tells neither.
    """
    if os.name == "nt":
        return _windows_memory()[0]
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        free = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
        left = cgroups.memory_left()
        return free if left is None else min(free, left)
    return memory_total()


def memory_peak() -> int:
    """The most bytes of memory that this process had; 0 where the system does not tell."""
    if resource is not None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024  # getrusage(2): bytes on macOS, KiB on Linux
    with contextlib.suppress(OSError, AttributeError):
        return _windows_peak()
    return 0


def _windows_memory() -> tuple[int, int]:
    """Available and total bytes, by GlobalMemoryStatusEx (sysinfoapi.h)."""

    class Status(ctypes.Structure):
        _fields_ = (("length", ctypes.c_uint32), ("load", ctypes.c_uint32), ("bytes", ctypes.c_uint64 * 7))

    status = Status(length=ctypes.sizeof(Status))
    kernel = ctypes.windll.kernel32  # type: ignore[attr-defined, unused-ignore]
    if not kernel.GlobalMemoryStatusEx(ctypes.byref(status)):
        raise OSError("the system does not tell its memory")
    return status.bytes[1], status.bytes[0]


def _windows_peak() -> int:
    """PeakWorkingSetSize, by GetProcessMemoryInfo (psapi.h)."""

    class Counters(ctypes.Structure):
        _fields_ = (("size", ctypes.c_uint32), ("faults", ctypes.c_uint32), ("bytes", ctypes.c_size_t * 8))

    counters = Counters(size=ctypes.sizeof(Counters))
    kernel = ctypes.windll.kernel32  # type: ignore[attr-defined, unused-ignore]
    kernel.GetCurrentProcess.restype = ctypes.c_void_p
    process = ctypes.c_void_p(kernel.GetCurrentProcess())
    if not kernel.K32GetProcessMemoryInfo(process, ctypes.byref(counters), counters.size):
        raise OSError("the system does not tell its memory")
    return int(counters.bytes[0])
