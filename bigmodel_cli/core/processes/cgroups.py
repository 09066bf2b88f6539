"""What a container or a service may use of its machine: the limits of Linux's control groups, versions 1 and 2.

``docker run --memory 2g --cpus 1.5``, a pod of Kubernetes, a job of Slurm and ``systemd-run -p MemoryMax=2G`` set them.
The machine's own figures do not show them, and whoever takes more is killed. A group is limited by those around it,
too. All functions find nothing on other systems.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path("/")
"""Below which the kernel's files lie; tests lay their own."""
UNLIMITED = 1 << 60
"""Bytes from which on version 1 means no limit: it shows the largest multiple of a page."""


def memory_limit() -> int | None:
    """The bytes of memory that this process and those of its groups may have together; None without a limit."""
    return min((limit for limit, _ in _memory()), default=None)


def memory_left() -> int | None:
    """The bytes that are left of the tightest limit, where what the kernel can drop counts as left."""
    return min((max(limit - used, 0) for limit, used in _memory()), default=None)


def cpu_limit() -> int | None:
    """The cores whose time this process may use, rounded up; None without a limit."""
    found = list[float]()
    for group in _groups("cpu"):
        quota, _, period = (_read(group / "cpu.max") or "").partition(" ")
        if not period:  # version 1
            quota, period = (_read(group / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period"))
        if quota.isdigit() and period.isdigit() and int(period):  # else "max" or -1: none
            found.append(int(quota) / int(period))
    return max(1, math.ceil(min(found))) if found else None


def _memory() -> Iterator[tuple[int, int]]:
    """The limit and the bytes in use, of each group that has a limit."""
    for group in _groups("memory"):
        for limit_name, used_name, cached in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit = _read(group / limit_name) or ""
            if limit.isdigit() and int(limit) < UNLIMITED:
                fields = dict(line.split(" ", 1) for line in (_read(group / "memory.stat") or "").splitlines())
                used = int(_read(group / used_name) or 0) - int(fields.get(cached, 0))
                yield int(limit), max(used, 0)


def _groups(controller: str) -> Iterator[Path]:
    """The folders of this process's group for `controller` and of those around it, in each hierarchy that has it."""
    mounts = [line.split() for line in (_read(ROOT / "proc/self/mountinfo") or "").splitlines()]
    paths = [line.split(":", 2) for line in (_read(ROOT / "proc/self/cgroup") or "").splitlines()]
    for number, controllers, path in (parts for parts in paths if len(parts) == 3):
        unified = number == "0" and not controllers
        if not unified and controller not in controllers.split(","):
            continue
        for fields in mounts:
            kind, options = fields[fields.index("-") + 1], fields[-1].split(",")
            if kind == "cgroup2" if unified else kind == "cgroup" and controller in options:
                yield from _around(PurePosixPath(path), PurePosixPath(fields[3]), ROOT / fields[4].lstrip("/"))


def _around(path: PurePosixPath, mounted: PurePosixPath, at: Path) -> Iterator[Path]:
    """The folder of the group `path` and those around it, where the group `mounted` is to be seen `at`."""
    inside = path.relative_to(mounted) if path.is_relative_to(mounted) else PurePosixPath()
    for group in (inside, *inside.parents) if inside.parts else (inside,):
        if ".." not in group.parts:
            yield at / group


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError):
        return None
