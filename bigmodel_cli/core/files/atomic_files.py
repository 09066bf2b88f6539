"""Atomic, durable files: complete or absent, even if the process, the disk or the machine fails."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

from bigmodel_cli.core.errors import MachineError
from bigmodel_cli.core.files.open_flags import BINARY, NO_FOLLOW, NO_WAIT, NOT_INHERITED

SHARDS_PREFIX = "parts-"
RENAME_WAITS = (0.01, 0.05, 0.2, 0.5, 1.0)  # seconds between tries
TEMPORARY = re.compile(r"\..+\.\d+(-[0-9a-f]{8})?\.tmp", re.DOTALL)


def link(source: Path, target: Path) -> None:
    """Make `target` a hard link to `source`, atomically: no second copy on the disk.

    Raises:
        MachineError: the disk is full or cannot be written.
    """

    if source.is_dir():
        symlink(target, source.resolve())
        return

    def write(temporary: Path) -> None:
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:  # a file system without hard links
            shutil.copyfile(source, temporary)
            sync_file(temporary)

    replace(target, write, lambda: source.stat().st_size)


def symlink(target: Path, folder: Path) -> None:
    """Make `target` a symbolic link to its sibling `folder`, atomically.

    Raises:
        MachineError: the disk is full or cannot be written.
    """

    def write(temporary: Path) -> None:
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(folder.name, target_is_directory=True)

    replace(target, write, lambda: 1)


def remove_sharded(found: Iterable[Path], keep: Iterable[Path] = ()) -> None:
    """Remove the sharded checkpoints in `found` that no link in `keep` points to."""
    kept = {path.resolve() for path in keep}
    for path in found:
        if path.is_dir() and not path.is_symlink() and path.resolve() not in kept:
            shutil.rmtree(path, ignore_errors=True)


def replace(path: Path, write: Callable[[Path], object], needed: Callable[[], int]) -> None:
    """Call `write` with a temporary path, then rename that file to `path`. `needed` gives bytes for the error message.

    Raises:
        MachineError: the disk is full or cannot be written; no temporary file is left.
    """
    temporary = temporary_name(path)
    try:
        with temporary.open("xb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        write(temporary)
        written = temporary.lstat()
        if stat.S_ISREG(written.st_mode) and written.st_nlink == 1 and stat.S_IMODE(written.st_mode) != mode:
            temporary.chmod(mode)  # safetensors ignores the umask
        _rename(temporary, path)
        sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # a full disk raises either, depending on the write that hits it
        _remove(temporary)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "the write failed"
        raise MachineError(
            f"{path}: {reason}; about {needed()} bytes needed, {free_bytes(path.parent)} free",
            hint="free some space, or choose another --out",
        ) from None
    except BaseException:
        _remove(temporary)
        raise


def _rename(temporary: Path, path: Path) -> None:
    """Rename over `path`. Windows refuses while another process has it open, as a virus scanner does for a moment."""
    for wait in RENAME_WAITS if os.name == "nt" else ():
        try:
            temporary.replace(path)
            return
        except PermissionError:
            time.sleep(wait)
    temporary.replace(path)


def temporary_name(path: Path) -> Path:
    """A name beside `path` that nobody can guess, so that no link of that name lies in a stranger's folder."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def _remove(temporary: Path) -> None:
    with contextlib.suppress(OSError):  # the original error is the one to report
        temporary.unlink(missing_ok=True)


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk of `folder`; 0 if the folder does not exist."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def remove_temporary_files(folder: Path) -> None:
    """Remove the temporary files of an interrupted save, and no other files. The caller holds the folder's lock."""
    for path in folder.glob(".*.tmp"):
        if TEMPORARY.fullmatch(path.name) and (path.is_symlink() or not path.is_dir()):
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically; a link at `path` is replaced, not followed.

    Raises:
        MachineError: the disk is full or cannot be written.
    """
    # A traceback or recipe may contain a file name that is not valid UTF-8.
    encoded = text.encode("utf-8", "backslashreplace")
    replace(path, lambda temporary: temporary.write_bytes(encoded), lambda: len(encoded))


def open_own(path: Path, flags: int = os.O_APPEND) -> IO[str]:
    """Open the text file at `path` to read and write it, made if there is none; a link is not followed.

    Raises:
        OSError: it cannot be written, or is a link.
    """
    try:
        if not NO_FOLLOW and path.is_symlink():
            raise OSError(errno.ELOOP, "")
        flags |= os.O_RDWR | os.O_CREAT | NO_FOLLOW | NO_WAIT | NOT_INHERITED | BINARY
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(error.errno, f"{path.name} is a link") from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"{path.name} is not a regular file")
    return os.fdopen(descriptor, "a+", encoding="utf-8", buffering=1, newline="")


def sync_file(path: Path) -> None:
    """Make the bytes of the file at `path` durable."""
    with path.open("rb+" if os.name == "nt" else "rb") as file:  # Windows flushes for a writer only
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable, so that a rename survives a power cut.

    Some network file systems cannot, and Windows opens no folders: NTFS keeps a journal of its names.
    """
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
