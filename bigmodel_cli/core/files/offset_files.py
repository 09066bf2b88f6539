"""Reads and writes at an offset of an open file from several threads, also where there is no ``preadv``."""

from __future__ import annotations

import os
import threading

from bigmodel_cli.core.files.open_flags import BINARY

_position = threading.Lock()  # the one of a descriptor is shared by its threads


def open_bytes(path: str | os.PathLike[str], flags: int = os.O_RDONLY, mode: int = 0o666) -> int:
    """A descriptor of the file at `path`; one that is made gets the permissions `mode`, less the umask."""
    return os.open(path, flags | BINARY, mode)


def read_into(descriptor: int, buffer: memoryview, offset: int) -> int:
    """Fill `buffer` from `offset` on; the number of bytes read."""
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [buffer], offset)
    with _position:
        os.lseek(descriptor, offset, os.SEEK_SET)
        raw = os.read(descriptor, len(buffer))
    buffer[: len(raw)] = raw
    return len(raw)


def write_at(descriptor: int, raw: bytes | memoryview, offset: int) -> int:
    """Write `raw` at `offset`; the number of bytes written."""
    if hasattr(os, "pwrite"):
        return os.pwrite(descriptor, raw, offset)
    with _position:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.write(descriptor, raw)
