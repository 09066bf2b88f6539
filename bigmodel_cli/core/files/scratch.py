"""Folders for what a command needs for a moment, in the system's folder for temporary files."""

from __future__ import annotations

import contextlib
import functools
import re
import shutil
import stat
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
        made = tempfile.TemporaryDirectory(prefix=f"bigmodel-{current_owner().token}-")
    except OSError as error:
        what = f"temporary files: {error.strerror or error}"
        raise MachineError(what, "expected a folder that can be written", "TMPDIR=FOLDER bigmodel ...") from None
    with made as name:
        folder = Path(name)
        remove_leftovers(folder.parent, folder.stat().st_uid)
        yield folder


@functools.cache
def remove_leftovers(parent: Path, user: int) -> None:
    """Remove the folders of `user` whose processes have certainly ended; a link is none of them."""
    with contextlib.suppress(OSError):  # the folder is everyone's, and others remove theirs meanwhile
        for path in parent.glob("bigmodel-*"):
            match, found = LEFT.fullmatch(path.name), path.lstat()
            owner = Owner.parse(match[1]) if match else None
            if owner and owner.is_gone() and stat.S_ISDIR(found.st_mode) and found.st_uid == user:
                shutil.rmtree(path, ignore_errors=True)
