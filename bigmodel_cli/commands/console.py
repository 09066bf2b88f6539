"""The one place that prints: results to stdout, everything else to stderr, so that pipes stay clean."""

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
    # A file name may hold characters that the terminal's encoding lacks: they are shown as escapes.
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")

PIPE_WIDTH = 200  # columns in a pipe or a log, where 80 would fold the rows of a table
piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ

out = Console(highlight=False, width=PIPE_WIDTH if piped else None)
err = Console(stderr=True, highlight=False)


def is_terminal() -> bool:
    """Whether stderr is a terminal that can redraw lines."""
    return err.is_terminal and not err.is_dumb_terminal


def say(text: str, prose: bool = False) -> None:
    """Print a line of the result on stdout, control characters escaped. Only `prose` is wrapped: a path stays whole."""
    out.print(Text(printable(text)), soft_wrap=not (prose and out.is_terminal))


def raw(text: str) -> None:
    """Write text to stdout unchanged."""
    sys.stdout.write(text)


def print_json(value: Any) -> None:
    """Write one JSON object on one line; NaN and infinity become null, since JSON has neither."""
    sys.stdout.write(json.dumps(finite(value), default=str) + "\n")
    sys.stdout.flush()


def table(title: str | None, columns: Sequence[str], rows: Iterable[Sequence[str]], right: bool = False) -> Table:
    """A table; with `right`, every column but the first is right-aligned.

    Text from a file is shown literally: markup is not interpreted, control characters are escaped.
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
    """Print a table, or anything else that rich renders, on stdout."""
    out.print(renderable)


class RankOutput:
    """What this process prints where it is one of several: rank 0 everything, the others only their errors."""

    prefix = ""
    claims_error: Callable[[str], bool] = staticmethod(lambda line: True)
    """Whether this process is the one to print an error; rank 0 calls it after printing, so that others do not."""
    is_main = True


def print_as_rank(rank: int, claims_error: Callable[[str], bool]) -> None:
    """From now on print as rank `rank` of several processes."""
    RankOutput.claims_error, RankOutput.is_main = staticmethod(claims_error), rank == 0  # type: ignore[assignment]
    if rank:
        RankOutput.prefix = f"rank {rank}: "
        out.quiet = True
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123  # until the process ends


def note(text: str) -> None:
    """Print a line on stderr, control characters escaped."""
    if RankOutput.is_main:
        err.print(Text(printable(text)), soft_wrap=not is_terminal())


def error(problem: BigmodelError) -> None:
    """Print the error on stderr, then its hint."""
    if not RankOutput.is_main and not RankOutput.claims_error(problem.line):
        return
    err.print(Text(f"error: {RankOutput.prefix}{problem.line}", style="bold red"), soft_wrap=True)
    if problem.hint:
        err.print(Text(f"hint: {printable(problem.hint)}"), soft_wrap=True)
    if RankOutput.is_main:
        RankOutput.claims_error(problem.line)
