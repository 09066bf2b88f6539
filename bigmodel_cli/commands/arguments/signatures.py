"""Shared flags, declared once as fields of a dataclass and added to the signature of each command.

Typer builds a command line from a function's signature. `takes_options` replaces the function's one
dataclass parameter by a keyword parameter for each shared flag. When the command runs, the function
receives the dataclass, filled in.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, get_args, get_type_hints

from typer.models import ParameterInfo

Command = Callable[..., None]
KEYWORD_ONLY = inspect.Parameter.KEYWORD_ONLY


@dataclass(frozen=True)
class Flag:
    """Metadata of a shared flag; the third part of its ``Annotated[type, typer.Option(...), Flag(...)]``.

    Args:
        sets: the recipe field that it sets, as ``"section.key"``.
        default: the behaviour without the flag, for the help; the value is then None.
        also: the commands that have it, besides ``train`` and ``finetune``, which have every flag.
    """

    sets: str | None = None
    default: str | None = None
    also: tuple[str, ...] = ()

    @property
    def path(self) -> tuple[str, str]:
        """Section and key of the recipe field."""
        section, _, key = (self.sets or "").partition(".")
        return section, key


@functools.cache
def annotations_of(kind: type) -> dict[str, Any]:
    """The annotation of each field of `kind`, including its metadata."""
    return get_type_hints(kind, include_extras=True)


def flags_of(kind: type) -> Iterator[tuple[str, Flag]]:
    """Name and `Flag` of each field, in order."""
    for name, annotation in annotations_of(kind).items():
        yield name, next(part for part in get_args(annotation) if isinstance(part, Flag))


def takes_options(command: str, **defaults: str) -> Callable[[Command], Command]:
    """Decorator that gives a command function the shared flags of its dataclass parameter.

    Args:
        command: the name of the command, as in `Flag.also`.
        defaults: the default that the help shows for a flag, if it differs from the declaration.
    """

    def decorate(function: Command) -> Command:
        hints = get_type_hints(function, include_extras=True)
        [(options_name, kind)] = [(n, h) for n, h in hints.items() if isinstance(h, type) and is_dataclass(h)]
        shared = _parameters(kind, command, defaults)

        @functools.wraps(function)
        def run(**given: Any) -> None:
            options = kind(**{p.name: given.pop(p.name) for p in shared if p.name in given})
            function(**given, **{options_name: options})

        parameters: list[inspect.Parameter] = []
        for own in inspect.signature(function).parameters.values():
            keyword = own.replace(annotation=hints[own.name], kind=KEYWORD_ONLY)
            parameters += shared if own.name == options_name else [keyword]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return run

    return decorate


def _parameters(kind: type, command: str, defaults: dict[str, str]) -> list[inspect.Parameter]:
    """A keyword parameter for each flag of `command`."""
    parameters = []
    for field, (name, flag) in zip(fields(kind), flags_of(kind), strict=True):
        if command in ("train", "finetune", *flag.also):
            annotation = _with_default(annotations_of(kind)[name], defaults.get(name, flag.default))
            parameters.append(inspect.Parameter(name, KEYWORD_ONLY, default=field.default, annotation=annotation))
    return parameters


def _with_default(annotation: Any, default: str | None) -> Any:
    """`annotation`, with `default` in its help. Typer's own `show_default` would put it in parentheses."""
    if default is None:
        return annotation
    plain, *parts = (copy.copy(part) for part in get_args(annotation))
    for part in parts:
        if isinstance(part, ParameterInfo):
            part.help = f"{part.help}  [default: {default}]"
    return Annotated[(plain, *parts)]
