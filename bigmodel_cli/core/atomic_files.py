"""Atomic, durable files: complete or absent, even if the process, the disk or the machine fails."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from bigmodel_cli.core.errors import MachineError

SHARDS_PREFIX = "parts-"
TEMPORARY = re.compile(r"\..+\.\d+\.tmp")


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
            with temporary.open("rb") as file:
                os.fsync(file.fileno())

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
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        temporary.replace(path)
        _sync_folder(path.parent)
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
        if TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable, so that it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot sync folders
            raise
    finally:
        os.close(descriptor)
