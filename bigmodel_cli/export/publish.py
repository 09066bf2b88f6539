"""Publish a folder atomically: the old one stays until the new one is complete."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from bigmodel_cli.core.errors import InputError, MachineError
from bigmodel_cli.export.folder import LABELS, is_export

LEFT = re.compile(r"\..+\.(\d+)\.(new|old)")


def check_target(out: Path, overwrite: bool) -> None:
    """Check that `out` is free or may be replaced.

    Raises:
        InputError: it is a file, a folder that is not an export, or an export and `overwrite` is not set.
    """
    if not out.parent.is_dir():
        raise InputError(f"{out.parent}: no such folder", "expected one for --out")
    if (out.exists() or out.is_symlink()) and not out.is_dir():
        raise InputError(f"{out}: is a file", "expected the name of a folder for --out")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not is_export(out):
        raise InputError(
            f"{out}: the folder is not empty, and not an export", "expected a new one", "give another --out"
        )
    if not overwrite:
        raise InputError(f"{out}: an export already exists", hint="--overwrite to replace it, or another --out")


@contextlib.contextmanager
def draft(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out`, for the caller to fill and pass to :func:`publish`; removed on exit.

    Raises:
        MachineError: it cannot be created.
    """
    remove_leftovers(out.parent)
    folder = out.with_name(f".{out.name}.{os.getpid()}.new")
    try:
        folder.mkdir()
    except OSError as error:
        raise write_error(out, error) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, out: Path) -> None:
    """Sync `folder` to disk and rename it to `out`; the old folder is removed afterwards.

    Raises:
        MachineError: the disk is full or not writable; the old folder is restored.
    """
    old = out.with_name(f".{out.name}.{os.getpid()}.old")
    try:
        for path in [*folder.rglob("*"), folder]:
            if path.is_file():  # safetensors writes files that are readable only by their owner
                shutil.copymode(folder / LABELS, path)
            _fsync(path)
        if out.exists():
            out.rename(old)
        try:
            folder.rename(out)
        except OSError:
            if old.exists():
                old.rename(out)
            raise
        _fsync(out.parent)
    except OSError as error:
        raise write_error(out, error) from error
    shutil.rmtree(old, ignore_errors=True)


def _fsync(path: Path) -> None:
    """Flush `path` to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext():
            os.fsync(descriptor)  # some network file systems sync no folders
    finally:
        os.close(descriptor)


def remove_leftovers(parent: Path) -> None:
    """Remove what a killed export left behind, and restore an old export that it had renamed."""
    for path in parent.glob(".*"):
        match = LEFT.fullmatch(path.name)
        if match is None or not path.is_dir() or _alive(int(match[1])):
            continue
        out = path.with_name(path.name[1:].removesuffix(f".{match[1]}.{match[2]}"))
        if match[2] == "old" and is_export(path) and not out.exists():
            path.rename(out)
        elif match[2] == "new" or is_export(path):
            shutil.rmtree(path, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def write_error(out: Path, error: OSError) -> MachineError:
    """The error for a failed write, with the free disk space."""
    reason = error.strerror or str(error)
    free = shutil.disk_usage(out.parent).free
    return MachineError(f"{out}: cannot write: {reason}; {free} bytes free", hint="give another --out")
