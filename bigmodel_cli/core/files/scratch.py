"""Folders for what a command needs for a moment, in the system's folder for temporary files."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bigmodel_cli.core.errors import MachineError
from bigmodel_cli.core.files.owners import TOKEN, Owner, current_owner

LEFT = re.compile(rf"bigmodel-({TOKEN})-\w+")


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new empty folder that only this user can read, removed on exit.

    The first of a process also removes those that killed processes left.

    Raises:
        MachineError: there is no folder for temporary files that can be written.
    """
    try:
        remove_leftovers(tempfile.gettempdir())
        made = tempfile.TemporaryDirectory(prefix=f"bigmodel-{current_owner().token}-")
    except OSError as error:
        what = f"temporary files: {error.strerror or error}"
        raise MachineError(what, "expected a folder that can be written", "TMPDIR=FOLDER bigmodel ...") from None
    with made as folder:
        yield Path(folder)


@functools.cache
def remove_leftovers(parent: str) -> None:
    """Remove this user's folders whose processes have certainly ended; a link is none of them."""
    with os.scandir(parent) as entries:
        for entry in entries:
            match = LEFT.fullmatch(entry.name)
            owner = Owner.parse(match[1]) if match else None
            if owner and owner.is_gone() and entry.is_dir(follow_symlinks=False) and _is_own(entry):
                shutil.rmtree(entry.path, ignore_errors=True)


def _is_own(entry: os.DirEntry[str]) -> bool:
    """Whether this user made it; the folder may be everyone's."""
    return not hasattr(os, "geteuid") or entry.stat(follow_symlinks=False).st_uid == os.geteuid()
