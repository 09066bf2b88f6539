"""Which checkpoint a path means, and whether it is the pinned one."""

from __future__ import annotations

import hashlib
from pathlib import Path

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.engine.checkpoint.sharded import is_sharded


def checkpoint_file(path: Path) -> Path:
    """`path` itself, or the best checkpoint of the run folder it is.

    Raises:
        InputError: there is none.
    """
    if path.is_dir() and not is_sharded(path):
        found = next((path / name for name in ("best.pt", "last.pt") if (path / name).exists()), None)
        if found is None:
            raise InputError(f"{path}: no checkpoint in this folder", "expected best.pt or last.pt")
        return found
    return path


def check_pin(path: Path, sha256: str | None) -> None:
    """Hold the file at `path` to the hash that the user gave, before anything is read of it.

    Raises:
        InputError: it is another file, or not there.
    """
    if sha256 is None:
        return
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    if found != sha256.lower():
        what = f"{path}: SHA-256 {found[:12]}..., start.sha256 is {sha256[:12].lower()}..."
        raise InputError(what, "expected the pinned file", f"sha256sum {path}")
