"""The number of CPU cores available to this process."""

from __future__ import annotations

import os

from bigmodel_cli.core.processes import cgroups


def available_cores() -> int:
    """The number of cores this process may run on; ``taskset`` or a container may allow fewer than exist.

    A limit of their time counts, too: of ``docker run --cpus 1.5`` it is 2.
    """
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        cores = len(os.sched_getaffinity(0))
    return min(cores, cgroups.cpu_limit() or cores)


def asked_threads() -> int | None:
    """The threads that ``OMP_NUM_THREADS`` asks for: of a list by nesting level ("4,2"), the first.

    None where it is not set, or is no such list, in which case OpenMP ignores it too.
    """
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isascii() and first.isdigit() and int(first) else None
