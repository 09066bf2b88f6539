"""Tar archives of a stranger: Python's own reader goes round in circles where a header says a negative size, and
takes a damaged header for the end."""

from __future__ import annotations

import contextlib
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

ERRORS = (tarfile.TarError, OSError, EOFError, ValueError, zlib.error, lzma.LZMAError)
"""What reading a damaged archive raises."""


class _Member(tarfile.TarInfo):
    def _block(self, count: int) -> int:
        """The size of `count` bytes in whole blocks, by which the reader goes on to the next header."""
        if count < 0:
            raise tarfile.ReadError("a negative size")
        return super()._block(count)  # type: ignore[misc,no-any-return]


@contextlib.contextmanager
def open_tar(path: Path, mode: str) -> Iterator[tuple[tarfile.TarFile, Iterator[tarfile.TarInfo]]]:
    """The archive and its members, which must be read to the end; see ERRORS for what both raise."""
    with tarfile.open(path, mode, tarinfo=_Member) as tar:  # type: ignore[call-overload]
        yield tar, _members(tar)


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members. Python's reader takes a damaged header for the end of the archive."""
    yield from tar
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.ReadError(f"no header at byte {tar.offset}")
