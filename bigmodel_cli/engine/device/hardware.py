"""The processor and the memory of this machine, as the system reports them. Imports no torch."""

from __future__ import annotations

import platform
from pathlib import Path


def cpu_flags() -> tuple[str, set[str]]:
    """The processor's name and the names of its instruction sets, as the system spells them; "" where unknown."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor(), set()
    fields = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in text.splitlines())}
    return fields.get("model name", ""), set(fields.get("flags", fields.get("Features", "")).split())


def memory_bytes() -> tuple[int, int]:
    """Free and total bytes of this machine's memory.

    Raises:
        OSError, KeyError, ValueError, IndexError: the system does not say.
    """
    lines = Path("/proc/meminfo").read_text().splitlines()
    sizes = {k: int(v.split()[0]) * 1024 for k, v in (line.split(":") for line in lines)}
    return sizes["MemAvailable"], sizes["MemTotal"]
