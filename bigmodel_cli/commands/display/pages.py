"""The HTML pages that commands write beside what they print. A page that cannot be written loses no result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bigmodel_cli.commands.display import console
from bigmodel_cli.core.errors import InputError, MachineError


def require_place(path: Path | None) -> None:
    """Require, before the work, that the file at `path`, if one was given, has a folder to be in.

    Raises:
        InputError: it has none, or is one.
    """
    if path is None:
        return
    if path.is_dir():
        raise InputError(f"{path}: is a folder", "expected the name of a file")
    if not path.parent.is_dir():
        raise InputError(f"{path.parent}: no such folder", f"expected one for {path.name}")


def written(path: Path, given: bool, write: Callable[[Path], object]) -> tuple[str | None, MachineError | None]:
    """Where `write` has written a page, and the error to raise, once the results are shown, if it could not.

    A place that was not `given` is said to be out of reach, and is no error.
    """
    try:
        write(path)
    except MachineError as problem:
        if given:
            return None, problem
        console.note(f"no page: {problem.line}; --page FILE puts it elsewhere")
        return None, None
    return str(path), None
