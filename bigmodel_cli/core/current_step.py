"""The name of the step that a child process is at, readable by its parent even after the child has died."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator

SIZE = 4096
_board = mmap.mmap(-1, SIZE)  # shared with every process forked from this one


@contextlib.contextmanager
def current_step(name: str) -> Iterator[None]:
    """The step `name` lasts as long as the block; a process that dies inside leaves the name."""
    before = read_step()
    _write(name)
    try:
        yield
    finally:
        _write(before)


def read_step() -> str:
    """The name of the step, or "" between steps."""
    return os.fsdecode(bytes(_board[:]).rstrip(b"\0"))


def clear_step() -> None:
    """Forget the step of a child that has died."""
    _write("")


def _write(name: str) -> None:
    raw = os.fsencode(name)[:SIZE]
    _board[:] = raw.ljust(SIZE, b"\0")
