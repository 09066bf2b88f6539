"""The processor and memory of this machine, as the operating system reports them. Imports no torch."""

from __future__ import annotations

import platform
from pathlib import Path

from bigmodel_cli.core.processes.host_memory import memory_available, memory_total


def cpu_info() -> tuple[str, set[str]]:
    """The processor's name ("" where unknown) and its instruction sets, as the operating system spells them."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor(), set()
    fields = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in text.splitlines())}
    return fields.get("model name", ""), set(fields.get("flags", fields.get("Features", "")).split())


def memory_bytes() -> tuple[int, int]:
    """Free and total bytes of this machine's memory.

    Raises:
        OSError: the operating system does not report it.
    """
    return memory_available(), memory_total()


def oom_kills() -> int:
    """How many processes the kernel has ended for want of memory since it started; 0 where it does not tell."""
    try:
        lines = Path("/proc/vmstat").read_text(encoding="utf-8").splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
    except (OSError, ValueError, IndexError):
        return 0
