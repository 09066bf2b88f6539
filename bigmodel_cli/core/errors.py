"""Errors a user can act on: each states what is wrong, what was expected, and what to do.

They are raised where the problem is found, and turned into text only in ``cli.py``.
"""

from __future__ import annotations

import difflib
import http.client
import os
import re
from collections.abc import Iterable, Sequence

from bigmodel_cli.core.addresses import named, scrub

MAX_LINE = 200
NO_MEMORY = re.compile(r"DefaultCPUAllocator|not enough memory|out of memory|[Cc]annot allocate memory|bad_alloc")
"""What libraries write in a RuntimeError where memory runs out."""
NOT_PLAIN = re.compile("[^ -~]")
WRITTEN = "\n\t\u00a0\u202f\u3000\u200c\u200d"
"""What cannot be seen, but texts are written with: also the spaces of French and Chinese, and the joiners of Persian,
Hindi and emoji."""


class CommandEnd(BaseException):
    """Ends a command: what is wrong, what was expected, a hint, and the exit code of the process.

    Args:
        what: the problem, with its file and line.
        expected: what would have been right, or None where `what` implies it.
        hint: a command or an action that helps.
    """

    exit_code = 1

    def __init__(self, what: str, expected: str | None = None, hint: str | None = None) -> None:
        self.what = scrub(what)
        self.expected, self.hint = (None if text is None else scrub(text) for text in (expected, hint))
        super().__init__(self.line)

    @property
    def line(self) -> str:
        """One line of at most 200 printable characters."""
        text = self.what if self.expected is None else f"{self.what}; {self.expected}"
        text = printable(text)
        return text if len(text) <= MAX_LINE else text[: MAX_LINE - 1] + "…"


def service_reason(error: BaseException) -> str:
    """The class of an error of a service's library and its HTTP status, or what the system calls it.

    Its own words are the server's, which may hold what it was asked with.
    """
    name = type(error).__name__
    for one in (error, error.__cause__):
        reply = getattr(one, "response", None)
        told = reply.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(reply, dict) else None
        codes = (told, *(getattr(x, key, None) for x in (one, reply) for key in ("status_code", "status", "code")))
        code = next((int(str(c)) for c in codes if str(c).isdecimal() and int(str(c)) in http.client.responses), None)
        if code is not None:
            return f"{name}: {code} {http.client.responses[code]}"
    number = error.errno if isinstance(error, OSError) else None
    return f"{name}: {os.strerror(number)}" if isinstance(number, int) else name


class BigmodelError(CommandEnd, Exception):
    """An error that is told in one line."""


class InputError(BigmodelError):
    """Bad input: a flag, a recipe, a checkpoint or data, or two of them that do not match."""

    exit_code = 2


class MachineError(BigmodelError):
    """The environment: disk, memory, device, lock, network, a missing extra."""

    exit_code = 3


class DivergedError(BigmodelError):
    """The loss or a gradient is not finite."""

    exit_code = 4


class InterruptedRun(CommandEnd):
    """A signal stopped the run after a checkpoint was saved. The exit code is 128 + `signum`.

    As a KeyboardInterrupt it is no Exception: it comes at any moment, also in a library that catches all of those.
    """

    def __init__(self, signum: int, what: str, hint: str | None = None) -> None:
        super().__init__(what, hint=hint)
        self.exit_code = 128 + signum


def printable(text: str, keep: str = "") -> str:
    r"""`text` with characters that cannot be seen escaped, but those in `keep`: files can hold terminal escapes.

    A byte of a file name that is not UTF-8 is shown as in the shell: ``\xff``. The copy of what is at an address is
    called by that address.
    """
    return NOT_PLAIN.sub(lambda found: found[0] if found[0] in keep else _shown(found[0]), named(text))


def _shown(character: str) -> str:
    if character.isprintable():
        return character
    undecoded = ord(character) - 0xDC00  # what os.fsdecode makes of a byte
    return f"\\x{undecoded:02x}" if 0x80 <= undecoded <= 0xFF else repr(character)[1:-1]


def nearest(name: str, known: Iterable[str]) -> str:
    """A clause that suggests the nearest known names, or lists them if they are few."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(close) + "?"
    return "one of " + ", ".join(known) if len(known) <= 12 else f"one of {len(known)} known names"


def shorten(names: Sequence[str]) -> str:
    """The first five of `names`, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


class LostRank(MachineError):
    """Another process of the job exited or does not answer. That process reports its own error."""


def as_machine_error(error: BaseException) -> CommandEnd | None:
    """What an error from the system or a library says of the machine; None where it says nothing of it."""
    if isinstance(error, CommandEnd):
        return error
    if isinstance(error, KeyboardInterrupt):
        return InterruptedRun(2, "interrupted")
    if isinstance(error, BrokenPipeError):
        return InterruptedRun(13, "the reader of the output has gone")
    named = type(error).__name__
    if isinstance(error, MemoryError) or named == "OutOfMemoryError" or NO_MEMORY.search(str(error)):
        return MachineError("out of memory", hint="a smaller --batch-size, or a machine with more memory")
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("bigmodel_cli"):
        return MachineError(f"{error.name} is not installed", hint=f"pip install {error.name.partition('.')[0]}")
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return MachineError(f"{place}{error.strerror or error}", hint="bigmodel --debug COMMAND shows where")
    cause = error.__context__  # a signal that met a library at a bad moment: its way out then failed
    while cause is not None and not isinstance(cause, InterruptedRun):
        cause = cause.__context__
    return cause
