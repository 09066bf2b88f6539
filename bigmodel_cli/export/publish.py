"""A folder that is there whole or not at all, and an old one that stays until the new one is."""

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
    """Hold what lies at `out` against what may be replaced.

    Raises:
        InputError: a file, a folder that is no export, or an export without `overwrite`.
    """
    if not out.parent.is_dir():
        raise InputError(f"{out.parent}: no such folder", "expected one for --out")
    if (out.exists() or out.is_symlink()) and not out.is_dir():
        raise InputError(f"{out}: is a file", "expected the name of a folder for --out")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not is_export(out):
        raise InputError(f"{out}: the folder is not empty, and no export", "expected a new one", "give another --out")
    if not overwrite:
        raise InputError(f"{out}: there is an export already", hint="--overwrite to replace it, or another --out")


@contextlib.contextmanager
def draft(out: Path) -> Iterator[Path]:
    """A new folder beside `out`, which the caller fills and hands to :func:`publish`; on leaving it is gone.

    Raises:
        MachineError: it cannot be made.
    """
    _clean(out.parent)
    folder = out.with_name(f".{out.name}.{os.getpid()}.new")
    try:
        folder.mkdir()
    except OSError as error:
        raise unwritten(out, error) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, out: Path) -> None:
    """Make the durable contents of `folder` be `out`; what was there goes once the new one has its place.

    Raises:
        MachineError: the disk is full or cannot be written; the old one is back.
    """
    old = out.with_name(f".{out.name}.{os.getpid()}.old")
    try:
        for path in [*folder.rglob("*"), folder]:
            if path.is_file():  # safetensors writes files that only their owner may read
                shutil.copymode(folder / LABELS, path)
            _settle(path)
        if out.exists():
            out.rename(old)
        try:
            folder.rename(out)
        except OSError:
            if old.exists():
                old.rename(out)
            raise
        _settle(out.parent)
    except OSError as error:
        raise unwritten(out, error) from error
    shutil.rmtree(old, ignore_errors=True)


def _settle(path: Path) -> None:
    """On the disk, whatever happens to the machine."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext():
            os.fsync(descriptor)  # some network file systems sync no folders
    finally:
        os.close(descriptor)


def _clean(parent: Path) -> None:
    """Remove what a killed export left behind; an old export that had lost its name gets it back."""
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


def unwritten(out: Path, error: OSError) -> MachineError:
    """The error of a write, with what is free on the disk."""
    reason = error.strerror or str(error)
    free = shutil.disk_usage(out.parent).free
    return MachineError(f"{out}: cannot write: {reason}; {free} bytes free", hint="give another --out")
