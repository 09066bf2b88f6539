"""Which process made a file, so that what a dead one left can be told from what a live one is writing.

A process id alone identifies nothing: hosts that share a folder, and containers on one host, each have a process 7,
and after a restart another process has that number.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path

from bigmodel_cli.core.processes.process_start import process_start

TOKEN = r"[0-9a-f]{8}-[0-9a-f]{8}-\d+-\d+-\d+"
"""The pattern of :attr:`Owner.token`."""
FIRST_SPACE = 0xEFFFFFFC
"""The PID namespace that Linux starts with (``PROC_PID_INIT_INO``); a container has one of its own."""


@dataclass(frozen=True)
class Owner:
    """A process: its host, boot, PID namespace and number there, and when it started, in clock ticks since boot."""

    host: str
    boot: str
    space: int
    pid: int
    started: int

    @property
    def token(self) -> str:
        """For a file name."""
        return f"{self.host}-{self.boot}-{self.space}-{self.pid}-{self.started}"

    @classmethod
    def parse(cls, token: str) -> Owner | None:
        """The owner in the token, or None if it is none."""
        if re.fullmatch(TOKEN, token) is None:
            return None
        host, boot, space, pid, started = token.split("-")
        return cls(host, boot, int(space), int(pid), int(started))

    def is_gone(self) -> bool:
        """Whether it has certainly ended. Of another host, or another container, this process cannot tell."""
        here = current_owner()
        if self.host != here.host:
            return False
        if self.boot != here.boot:  # a container's host name and machine id may be those of another one elsewhere
            return here.space == self.space == FIRST_SPACE
        if self.space != here.space:
            return False
        started = process_start(self.pid)
        return started is None or started not in (self.started, 0)

    def is_here(self) -> bool:
        """Whether it is one of those that this process can see: of this host, this boot and this container."""
        here = current_owner()
        return (self.host, self.boot, self.space) == (here.host, here.boot, here.space)


def is_another_users(path: Path) -> bool:
    """Whether the file or link at `path` is of another user; Windows does not tell, and what is gone is nobody's."""
    user = getattr(os, "geteuid", None)
    try:
        return user is not None and path.lstat().st_uid != user()
    except OSError:
        return False


def stays(path: Path) -> str:
    """A note that the draft at `path` is left alone."""
    return f"{path} stays: a process of another host, container or user may be writing it"


def current_owner() -> Owner:
    """This process."""
    return Owner(*_place(), os.getpid(), process_start(os.getpid()) or 0)


@functools.cache
def _place() -> tuple[str, str, int]:
    """The host, its boot and the PID namespace of this process; zeros where the system does not tell."""
    host = hashlib.sha256(f"{socket.gethostname()}\n{_read('/etc/machine-id')}".encode()).hexdigest()[:8]
    boot = hashlib.sha256(_read("/proc/sys/kernel/random/boot_id").encode()).hexdigest()[:8]
    try:
        space = os.stat("/proc/self/ns/pid").st_ino  # noqa: PTH116
    except OSError:
        space = 0
    return host, boot, space


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""
