"""Addresses where a command takes a path: ``s3://bucket/run`` is read, and written to, by a copy in the cache."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import re
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from bigmodel_cli.core.errors import InputError

WEB = re.compile("https?:/", re.IGNORECASE)
Given = ParamSpec("Given")
Returned = TypeVar("Returned")
WRITTEN = ("out", "junit")
"""The arguments that name where a command writes."""


def with_addresses(function: Callable[..., Any], strings: tuple[str, ...] = ()) -> Callable[..., Any]:
    """`function`, with a copy of what is there in place of each path that is an address.

    Args:
        function: a command, whose paths are of type ``Path``.
        strings: its arguments that may be paths as plain strings.
    """

    @functools.wraps(function)
    def run(*args: Any, **given: Any) -> Any:
        with contextlib.ExitStack() as written:
            for name, value in given.items():
                if isinstance(value, str | PathLike) and name in strings:
                    value = Path(value) if ":/" in str(value) else value
                given[name] = _written(value, given, written) if name in WRITTEN else read_here(value)
            return function(*args, **given)

    return run


def taking_addresses(*names: str) -> Callable[[Callable[Given, Returned]], Callable[Given, Returned]]:
    """Decorator of a function whose arguments `names`, as strings or paths, may be addresses."""

    def decorate(function: Callable[Given, Returned]) -> Callable[Given, Returned]:
        order, reading = list(inspect.signature(function).parameters), with_addresses(function, names)

        @functools.wraps(function)
        def run(*args: Given.args, **given: Given.kwargs) -> Returned:
            named = dict(zip(order, args, strict=False))
            if named.keys() & given.keys():  # twice: let Python say so
                return function(*args, **given)
            found: Returned = reading(*args[len(order) :], **named, **given)
            return found

        return run

    return decorate


def read_here(value: Any) -> Any:
    """`value`, where it is a path that is an address, or a list of such, as a path here."""
    if isinstance(value, list):
        return [read_here(one) for one in value]
    if not _is_remote(value):
        return value
    from bigmodel_cli.core.files.remote_files import local_copy

    return local_copy(str(value))


def _written(value: Any, given: Mapping[str, Any], written: contextlib.ExitStack) -> Any:
    """`value`, where a command writes, as a path here, which is sent to its address until `written` is closed.

    Raises:
        InputError: processes on several hosts would write there.
    """
    if not _is_remote(value):
        return value
    from bigmodel_cli.commands.display import console
    from bigmodel_cli.core.files.remote_writes import written_copy

    if given.get("nnodes") not in (None, "1"):
        raise InputError("--nnodes with --out at an address", "expected a folder that all hosts share")
    # One of several processes writes to the copy of the one that has started them, which sends it.
    sends = "TORCHELASTIC_RUN_ID" not in os.environ
    return written.enter_context(written_copy(str(value), console.note, sends=sends))


def _is_remote(value: Any) -> bool:
    """Whether it is an address that is copied.

    Raises:
        InputError: it is a web address: only ``--data`` takes one.
    """
    if not isinstance(value, Path) or ":/" not in str(value):
        return False
    if WEB.match(str(value)):
        raise InputError(f"{value}: a web address", "expected a file or a folder", "download it first")
    from bigmodel_cli.core.files.remote_files import is_remote

    return is_remote(str(value))
