"""Publish a folder atomically: the old one stays until the new one is complete."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from bigmodel_cli.core.errors import InputError, MachineError
from bigmodel_cli.core.files import atomic_files, drafts
from bigmodel_cli.export.folder import is_export


def check_target(out: Path, overwrite: bool) -> list[str]:
    """Clean up after killed exports, and check that `out` is free or may be replaced; returns notes for the user.

    Raises:
        InputError: it is a link, a file, a folder that is not an export, or an export and `overwrite` is not set.
    """
    if not out.parent.is_dir():
        raise InputError(f"{out.parent}: no such folder", "expected one for --out")
    try:
        str(out.absolute()).encode()
    except UnicodeEncodeError:  # the libraries that write and read exports take no other
        raise InputError(f"{out}: the path is not UTF-8", "expected one that is, for --out") from None
    drafts.require_no_link(out)
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file", "expected the name of a folder for --out")
    notes = drafts.remove_leftovers(out.parent, is_export)
    if not out.is_dir() or not any(out.iterdir()):
        return notes
    if not is_export(out):
        raise InputError(
            f"{out}: the folder is not empty, and not an export", "expected a new one", "give another --out"
        )
    if not overwrite:
        raise InputError(f"{out}: an export already exists", hint="--overwrite to replace it, or another --out")
    return notes


@contextlib.contextmanager
def draft(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out`, for the caller to fill and pass to :func:`publish`; removed on exit.

    Raises:
        MachineError: it cannot be created.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(drafts.draft(out))
        except OSError as error:
            raise write_error(out, error) from error
        yield folder


def publish(folder: Path, out: Path) -> None:
    """Sync `folder` to disk and rename it to `out`; the old folder is removed afterwards.

    Raises:
        MachineError: the disk is full or not writable; the old folder is restored.
        InputError: `out` is a link.
    """
    try:
        plain = next(folder.glob("*.json"))
        for path in [*folder.rglob("*"), folder]:
            if path.is_file():  # safetensors writes files that are readable only by their owner
                shutil.copymode(plain, path)
                atomic_files.sync_file(path)
        for path in [*folder.rglob("*"), folder]:
            if path.is_dir():
                atomic_files.sync_folder(path)
        drafts.exchange(folder, out)
    except OSError as error:
        raise write_error(out, error) from error


def remove_leftovers(parent: Path) -> list[str]:
    """Clean up after killed exports in `parent`; returns a note for each draft whose process may live elsewhere."""
    return drafts.remove_leftovers(parent, is_export)


def write_error(out: Path, error: OSError) -> MachineError:
    """The error for a failed write, with the free disk space."""
    reason = error.strerror or str(error)
    free = shutil.disk_usage(out.parent).free
    return MachineError(f"{out}: cannot write: {reason}; {free} bytes free", hint="give another --out")
