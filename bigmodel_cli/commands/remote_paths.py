"""Addresses where a command takes a path: ``s3://bucket/run`` is read from a copy in the cache."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bigmodel_cli.core.addresses import scrub
from bigmodel_cli.core.errors import InputError


def reading_addresses(command: Callable[..., Any]) -> Callable[..., Any]:
    """`command`, with a copy of what is there in place of each path that is an address."""

    @functools.wraps(command)
    def run(**given: Any) -> Any:
        return command(**{name: _here(name, value) for name, value in given.items()})

    return run


def _here(name: str, value: Any) -> Any:
    """`value`, the argument `name` of a command, as the command can read it.

    Raises:
        InputError: it is where the command would write.
    """
    if isinstance(value, list):
        return [_here(name, one) for one in value]
    if not isinstance(value, Path) or ":/" not in str(value):
        return value
    from bigmodel_cli.core.remote_files import is_remote, local_copy

    if not is_remote(str(value)):
        return value
    if name in ("out", "junit"):
        shown = scrub(str(value).replace(":/", "://", 1))
        hint = "write to a folder here, and copy it there with the service's own tool"
        raise InputError(f"--{name} {shown}: an address", "expected a path on this machine", hint)
    return local_copy(str(value))
