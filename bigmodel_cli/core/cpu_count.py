"""The number of CPU cores available to this process."""

from __future__ import annotations

import os


def available_cores() -> int:
    """The number of cores this process may run on; ``taskset`` or a container may allow fewer than exist."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
