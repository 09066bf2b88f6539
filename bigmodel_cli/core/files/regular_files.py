"""Opens regular files only, and reads at most a given number of bytes: a folder from a stranger may hold a pipe
that never ends, a device, or a file larger than memory."""

from __future__ import annotations

import os
import stat
from io import BufferedReader
from pathlib import Path

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.files.open_flags import BINARY, NO_WAIT, NOT_INHERITED


def open_regular(path: str | Path) -> BufferedReader:
    """Open the file at `path` for reading; folders, pipes and devices are refused without waiting for them.

    Raises:
        InputError: it is not a regular file, or cannot be read.
    """
    try:
        file = os.fdopen(os.open(path, os.O_RDONLY | NO_WAIT | NOT_INHERITED | BINARY), "rb")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: not a regular file") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL in it
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise InputError(f"{path}: not a regular file")


def regular_stat(path: str | Path) -> os.stat_result:
    """What the system says of the file at `path`, for readers that open it by name: only of a regular one.

    Raises:
        InputError: it is none, is gone, or may not be looked at.
    """
    try:
        found = os.stat(path)  # noqa: PTH116 (a Path for each of a million files costs seconds)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: {reason}", "a broken link?") from None
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path}: not a regular file")
    return found


def read_regular(path: Path, most: int) -> bytes:
    """The bytes of the file at `path`, of which there may be at most `most`.

    Raises:
        InputError: it is not a regular file, cannot be read, or is larger.
    """
    with open_regular(path) as file:
        try:
            raw = file.read(most + 1)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror or error}") from None
    if len(raw) > most:
        raise InputError(f"{path}: refused: more than {most} bytes", "expected a smaller file")
    return raw


def require_few_containers(path: Path, raw: bytes) -> None:
    """Require that JSON has no more lists and objects than its size makes plausible, before they take memory.

    An empty one takes 2 bytes in the file, and 60 to 230 in memory.

    Raises:
        InputError: it has more.
    """
    count, most = raw.count(b"[") + raw.count(b"{"), 200_000 + len(raw) // 16
    if count > most:
        raise InputError(f"{path}: refused: {count} lists and objects", f"expected at most {most} in {len(raw)} bytes")
