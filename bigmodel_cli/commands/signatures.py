"""Shared flags: declared once as fields of a dataclass, and given to each command as flags of its own.

Typer builds a command line from a function's signature. `takes_options` gives the function the
signature in which its one dataclass parameter is replaced by a keyword for each shared flag, and
hands it the dataclass, filled in.
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
    """What a shared flag is for; the third part of its ``Annotated[type, typer.Option(...), Flag(...)]``.

    Args:
        sets: the recipe field that it sets, as ``"section.key"``.
        default: what happens without the flag, for the help; its value is then None.
        also: the commands that take it, besides ``train`` and ``finetune``, which take every flag.
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
    """The annotation of each field of `kind`."""
    return get_type_hints(kind, include_extras=True)


def flags_of(kind: type) -> Iterator[tuple[str, Flag]]:
    """Name and `Flag` of each field, in order."""
    for name, annotation in annotations_of(kind).items():
        yield name, next(part for part in get_args(annotation) if isinstance(part, Flag))


def takes_options(command: str, **defaults: str) -> Callable[[Command], Command]:
    """Give the command function of that name the shared flags of its dataclass parameter.

    Args:
        command: as it is typed, and as `Flag.also` has it.
        defaults: what its help says of a flag's default, where that differs from the declaration.
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
    """A keyword parameter for each flag that `command` takes."""
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
