"""The one place that prints: results to stdout, everything else to stderr, so that pipes stay clean."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from bigmodel_cli.core.addresses import named
from bigmodel_cli.core.errors import WRITTEN, BigmodelError, CommandEnd, MachineError, printable
from bigmodel_cli.core.types import finite

LONGEST_WORD = 200  # characters of a word in a command that is to be copied


def _open_closed_streams() -> None:
    """Open what the process was started without (``>&-``): else the next file opened gets its number, and our text."""
    for descriptor, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is `descriptor`
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


_open_closed_streams()
for stream in (sys.stdout, sys.stderr):
    # A file name may hold characters that the terminal's encoding lacks: they are shown as escapes.
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")

PIPE_WIDTH = 200  # columns in a pipe or a log, where 80 would fold the rows of a table
piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Raise it: Rich would end the process here, with exit code 1 and past every handler that records the end."""
        self.quiet = True
        raise


out = _Console(highlight=False, width=PIPE_WIDTH if piped else None)
err = _Console(stderr=True, highlight=False)


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """While stdout is written to.

    Raises:
        MachineError: it cannot be, as on a full disk.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as problem:
        raise MachineError(f"stdout: {problem.strerror}", hint="send the output elsewhere") from None


def is_terminal() -> bool:
    """Whether stderr is a terminal that can redraw lines."""
    return err.is_terminal and not err.is_dumb_terminal


def text(value: str, style: str = "") -> Text:
    """`value` to be drawn as it is written: control characters are escaped, and markup is none."""
    return Text(printable(value), style)


def say(text: str, prose: bool = False) -> None:
    """Print a line of the result on stdout, control characters escaped. Only `prose` is wrapped: a path stays whole."""
    with writing():
        out.print(Text(printable(text)), soft_wrap=not (prose and out.is_terminal))


def raw(text: str) -> None:
    """Write text to stdout unchanged; on a terminal what it would obey, or could not show, is escaped."""
    with writing():
        sys.stdout.write(printable(text, keep=WRITTEN) if sys.stdout.isatty() else text)


def note_next(checkpoint: Path, command: str, *words: str) -> None:
    """Name the next command for a checkpoint, as a note; none for an export, published weights or a long text."""
    if max(map(len, words), default=0) <= LONGEST_WORD and checkpoint.suffix == ".pt" and checkpoint.exists():
        note(f"next: bigmodel {shlex.join([command, str(checkpoint), *words])}")


def print_json(value: Any) -> None:
    """Write one JSON object on one line; NaN and infinity become null, since JSON has neither."""
    line = named(json.dumps(finite(value), default=str)) + "\n"
    with writing():
        sys.stdout.write(line)
        sys.stdout.flush()


def table(title: str | None, columns: Sequence[str], rows: Iterable[Sequence[str]], right: bool = False) -> Table:
    """A table; with `right`, every column but the first is right-aligned.

    Text from a file is shown literally: markup is not interpreted, control characters are escaped.
    """
    built = Table(
        title=None if title is None else text(title, "bold"),
        box=SIMPLE_HEAD,
        title_justify="left",
        header_style="bold",
    )
    for i, column in enumerate(columns):
        built.add_column(text(column), justify="right" if right and i else "left", overflow="fold")
    for row in rows:
        built.add_row(*map(text, row))
    return built


def show(renderable: RenderableType) -> None:
    """Print a table, or anything else that rich renders, on stdout."""
    with writing():
        out.print(renderable)


class RankOutput:
    """What this process prints where it is one of several: rank 0 everything, the others only their errors."""

    prefix = ""
    claims_error: Callable[[str], bool] = staticmethod(lambda line: True)
    """Whether this process is the one to print an error; rank 0 calls it after printing, so that others do not."""
    is_main = True


def flush() -> None:
    """Write what is buffered for stdout.

    Raises:
        BrokenPipeError: its reader has gone.
        MachineError: it cannot be written, as on a full disk.
    """
    with writing():
        sys.stdout.flush()


def discard_stdout() -> None:
    """Write nothing more to stdout, nor what is buffered for it: Python would try again at its end, and complain."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    with contextlib.suppress(OSError, ValueError):  # no file, as in a notebook
        os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


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
        try:
            err.print(Text(printable(text)), soft_wrap=not is_terminal())
        except BrokenPipeError:
            raise
        except OSError:  # a log on a full disk must not end the work; that it is full cannot be said there
            err.quiet = True


def raw_note(text: str) -> None:
    """Print a line on stderr as it is, for a program that reads it there."""
    err.print(Text(text), soft_wrap=True)


def help_page(text: str) -> None:
    """Print the help of a command that was given no arguments, on stderr."""
    with contextlib.suppress(OSError):
        err.print(Text(text), soft_wrap=True)


def report(errors: Sequence[BigmodelError]) -> None:
    """Print all `errors` but the last, which is raised; nothing without any."""
    for problem in errors[:-1]:
        error(problem)
    if errors:
        raise errors[-1]


def error(problem: CommandEnd) -> None:
    """Print the error on stderr, then its hint; where nobody reads stderr, only the exit code is left to tell it."""
    if not RankOutput.is_main and not RankOutput.claims_error(problem.line):
        return
    with contextlib.suppress(OSError):
        err.print(Text(f"error: {RankOutput.prefix}{problem.line}", style="bold red"), soft_wrap=True)
        if problem.hint:
            err.print(Text(f"hint: {printable(problem.hint)}"), soft_wrap=True)
    if RankOutput.is_main:
        RankOutput.claims_error(problem.line)
