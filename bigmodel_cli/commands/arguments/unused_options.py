"""Options that were typed and that a command does not use for the model at hand are refused, never passed over."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from typer._click.core import ParameterSource
from typer._click.globals import get_current_context

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.readers.tables import table_suffix


def typed(names: Iterable[str]) -> list[str]:
    """The flags of the parameters `names` of the running command that were typed; none where a program calls it."""
    context = get_current_context(silent=True)
    if context is None:
        return []
    wanted = {name for name in names if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    flags = {parameter.name: parameter.opts[0] for parameter in context.command.params}
    return [flags[name] for name in flags if name in wanted]


def refuse_unused(names: Iterable[str], of: str, hint: str | None = None) -> None:
    """Check that none of the parameters `names` was typed, which have no effect on `of`.

    Raises:
        InputError: one was; the message names it.
    """
    found = typed(names)
    if found:
        raise InputError(
            f"{', '.join(found)}: no effect on {of}", "leave it out" if len(found) == 1 else "leave them out", hint
        )


def refuse_columns(columns: str | None, files: Iterable[Path]) -> None:
    """Check that there is a table among `files` where ``--columns`` was given.

    Raises:
        InputError: there is none.
    """
    if columns is not None and not any(table_suffix(file) for file in files):
        raise InputError(f"--columns {columns}", "expected a table among the files", "leave --columns out")
