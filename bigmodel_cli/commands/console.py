"""The one place that prints. stdout carries results only, so pipes stay clean; all else goes to stderr."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from bigmodel_cli.core.errors import BigmodelError, printable
from bigmodel_cli.core.types import finite

for stream in (sys.stdout, sys.stderr):
    # A file's name may hold what the terminal's encoding has no sign for: it is shown as an escape.
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")

PIPE_WIDTH = 200  # columns; in a pipe or a log a row stays a line, where 80 would fold it
piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ

out = Console(highlight=False, width=PIPE_WIDTH if piped else None)
err = Console(stderr=True, highlight=False)


def is_terminal() -> bool:
    """Whether a person watches the progress."""
    return err.is_terminal and not err.is_dumb_terminal


def say(text: str, prose: bool = False) -> None:
    """A line of result on stdout, control characters escaped. A path in it stays one word: only `prose` is wrapped."""
    out.print(Text(printable(text)), soft_wrap=not (prose and out.is_terminal))


def raw(text: str) -> None:
    """Text as it is, on stdout."""
    sys.stdout.write(text)


def print_json(value: Any) -> None:
    """One JSON object on one line; what is not finite is null, since JSON has no NaN."""
    sys.stdout.write(json.dumps(finite(value), default=str) + "\n")
    sys.stdout.flush()


def table(title: str | None, columns: Sequence[str], rows: Iterable[Sequence[str]], right: bool = False) -> Table:
    """A table whose first column is text and, with `right`, whose others are figures.

    Whatever comes from a file is shown as it is written: no markup, no control characters.
    """
    built = Table(
        title=None if title is None else Text(printable(title), style="bold"),
        box=SIMPLE_HEAD,
        title_justify="left",
        header_style="bold",
    )
    for i, column in enumerate(columns):
        built.add_column(Text(printable(column)), justify="right" if right and i else "left", overflow="fold")
    for row in rows:
        built.add_row(*(Text(printable(cell)) for cell in row))
    return built


def show(renderable: RenderableType) -> None:
    """A table or the like, on stdout."""
    out.print(renderable)


class Voice:
    """How this process speaks, where it is one of several: rank 0 as ever, the others through their errors alone."""

    prefix = ""
    tells: Callable[[str], bool] = staticmethod(lambda line: True)
    """Asked with an error's line whether it is this process that tells it; rank 0 asks when it has told it."""
    first = True


def speak_as(rank: int, tells: Callable[[str], bool]) -> None:
    """From here on speak as rank `rank` of several."""
    Voice.tells, Voice.first = staticmethod(tells), rank == 0  # type: ignore[assignment]
    if rank:
        Voice.prefix = f"rank {rank}: "
        out.quiet = True
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123  # until the process ends


def note(text: str) -> None:
    """A line for the person on stderr; control characters from files are escaped."""
    if Voice.first:
        err.print(Text(printable(text)), soft_wrap=not is_terminal())


def error(problem: BigmodelError) -> None:
    """The error's line, then its hint, on stderr."""
    if not Voice.first and not Voice.tells(problem.line):
        return
    err.print(Text(f"error: {Voice.prefix}{problem.line}", style="bold red"), soft_wrap=True)
    if problem.hint:
        err.print(Text(f"hint: {printable(problem.hint)}"), soft_wrap=True)
    if Voice.first:
        Voice.tells(problem.line)
