"""The command that trains on what was inspected."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from bigmodel_cli.commands.display import console
from bigmodel_cli.core.readers.text_files import AUTO

if TYPE_CHECKING:
    from bigmodel_cli.core.readers.text_samples import Reading


def say_next(command: str, path: str, how: Reading | None, *more: str) -> None:
    """Print `command` on the data at `path`, read as it was here, with `more` flags."""
    words = [*command.split(), "--data", path]
    if how is not None and how.columns:
        words += ["--columns", ",".join(f"{role}={column}" for role, column in how.columns.items())]
    if how is not None and how.encoding != AUTO:
        words += ["--encoding", how.encoding]
    console.say(f"next: bigmodel {shlex.join([*words, *more])}")
