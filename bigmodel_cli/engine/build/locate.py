"""Finds the checkpoint that a path refers to, and checks it against a pinned hash."""

from __future__ import annotations

import hashlib
from pathlib import Path

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.files.regular_files import open_regular
from bigmodel_cli.engine.checkpoint.sharded import is_sharded


def checkpoint_file(path: Path) -> Path:
    """`path` itself, or the best checkpoint in it where it is a run folder.

    Raises:
        InputError: the folder has no checkpoint.
    """
    if path.is_dir() and not is_sharded(path):
        found = next((path / name for name in ("best.pt", "last.pt") if (path / name).exists()), None)
        if found is None:
            raise InputError(f"{path}: no checkpoint in this folder", "expected best.pt or last.pt")
        return found
    return path


def check_pin(path: Path, sha256: str | None) -> None:
    """Check the SHA-256 of the file at `path` against the pinned one, before any of it is parsed.

    Raises:
        InputError: the hash differs, or the file cannot be read.
    """
    if sha256 is None:
        return
    try:
        with open_regular(path) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    if found != sha256.lower():
        what = f"{path}: SHA-256 {found[:12]}..., start.sha256 is {sha256[:12].lower()}..."
        raise InputError(what, "expected the pinned file", f"sha256sum {path}")
