"""Folders that appear whole: written as a draft beside their place, then renamed.

    .<name>.<owner>.new    a draft
    .<name>.<owner>.old    the folder that a draft is replacing, for the moment of the exchange

What a killed process left is removed or, if it is the only whole folder, put back. What belongs to a live process,
to another host, container or user stays, and is named.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.files import atomic_files
from bigmodel_cli.core.files.owners import TOKEN, Owner, current_owner, is_another_users, stays

LEFT = re.compile(rf"\.(.+)\.({TOKEN})\.(new|old)", re.DOTALL)


def require_no_link(path: Path) -> None:
    """Require that `path` is not a symbolic link: what is written there would be written, or removed, elsewhere.

    Raises:
        InputError: it is one.
    """
    if path.is_symlink():
        target = os.readlink(path)  # noqa: PTH115
        raise InputError(f"{path}: is a link to {target}", "expected a folder", f"--out {target}")


@contextlib.contextmanager
def draft(target: Path) -> Iterator[Path]:
    """A new folder beside `target`, to fill and pass to :func:`exchange`; removed on exit if it is still there.

    Raises:
        OSError: it cannot be created.
    """
    folder = target.with_name(f".{target.name}.{current_owner().token}.new")
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def exchange(draft: Path, target: Path) -> None:
    """Rename `draft` to `target`, and remove what was there; that is put back if the rename fails.

    Raises:
        OSError: the folder is not writable.
        InputError: `target` is a link.
    """
    require_no_link(target)
    old = target.with_name(f".{target.name}.{current_owner().token}.old")
    if target.exists():
        target.rename(old)
    try:
        draft.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    with contextlib.suppress(OSError):  # the exchange is made
        atomic_files.sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def remove_leftovers(parent: Path, is_ours: Callable[[Path], bool]) -> list[str]:
    """Clean up after killed processes in `parent`; returns a note for each draft whose process may live elsewhere.

    `is_ours` tells whether a replaced folder is of the caller's kind, and whole.
    """
    unknown = []
    for path in sorted(parent.glob(".*")):
        match = LEFT.fullmatch(path.name)
        owner = Owner.parse(match[2]) if match else None
        if match is None or owner is None or path.is_symlink() or not path.is_dir():
            continue
        theirs = is_another_users(path)
        if theirs or not owner.is_gone():
            if theirs or not owner.is_here():
                unknown.append(stays(path))
            continue
        target = path.with_name(match[1])
        if match[3] == "new":
            shutil.rmtree(path, ignore_errors=True)
        elif is_ours(path) and not target.exists() and not target.is_symlink():
            path.rename(target)
        elif is_ours(path):
            shutil.rmtree(path, ignore_errors=True)
    return unknown


def remove_own(path: Path) -> None:
    """Remove the file or folder at `path`, if there is one; of a link only the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def is_temporary(path: Path) -> bool:
    """Whether `path` is a draft that a killed process may have left."""
    return LEFT.fullmatch(path.name) is not None or atomic_files.TEMPORARY.fullmatch(path.name) is not None
