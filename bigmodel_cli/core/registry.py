"""Registries: adding a component is one decorated function in one file, with no list to edit.

A component is a function. Its positional parameters are what the engine hands in
(a spec, a model's parameters, ...); its keyword-only parameters, with their types
and defaults, *are* its recipe schema: pydantic builds the check from the signature.
A family of networks is one function under several names, each registration fixing a
positional parameter: ``@models.register("resnet20", depth=20)``. A library's models are
one function under ``"timm:*"``, whose `members` lists the names after the colon.

Names are found by reading the source of the package (no import), so shell
completion and ``bigmodel models`` need no torch, and using one model imports one
file; ``tests/project/test_source_rules.py`` holds both views against each other. Plug-ins
(:mod:`bigmodel_cli.core.plugins`) come in beside them, and cannot take a name that is taken.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import re
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from bigmodel_cli.core import plugins
from bigmodel_cli.core.component_source import Found, components_in, modules_below
from bigmodel_cli.core.errors import InputError, nearest

if TYPE_CHECKING:
    from pydantic import BaseModel

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}(:\*)?")


class UnknownName(InputError):
    """No component has that name, or its plug-in is not there."""


@dataclass(frozen=True)
class Entry:
    """One registered component: its function, what it was registered with, and its schema."""

    kind: str
    name: str
    function: Callable[..., Any]
    meta: dict[str, Any]

    @functools.cached_property
    def schema(self) -> type[BaseModel]:
        """The recipe schema, built from the keyword-only parameters of the function."""
        from pydantic import ConfigDict, create_model  # a fifth of the time that bigmodel --help takes

        parameters = inspect.signature(self.function).parameters.values()
        own = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
        # Of these alone: the types of the others may be imported for the type checker only.
        declared = SimpleNamespace(__annotations__={name: p.annotation for name, p in own.items()})
        written_in = inspect.unwrap(self.function).__globals__  # type: ignore[attr-defined]  # not where it was wrapped
        hints = typing.get_type_hints(declared, written_in, include_extras=True)
        fields: dict[str, Any] = {
            name: (hints[name], ... if p.default is p.empty else p.default) for name, p in own.items()
        }
        config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
        return create_model(self.name, __config__=config, **fields)

    def options(self, raw: dict[str, Any], section: str) -> dict[str, Any]:
        """`raw` checked, typed and completed with the defaults.

        Raises:
            pydantic.ValidationError: its locations are relative to `section`;
                :func:`bigmodel_cli.core.resolve.explain` turns it into a line.
        """
        return {k: getattr(model, k) for model in [self.schema(**raw)] for k in self.schema.model_fields}

    @functools.cached_property
    def bound(self) -> dict[str, Any]:
        """The positional parameters that the registration fixed: one function serves several names."""
        parameters = inspect.signature(self.function).parameters.values()
        plain = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        return {name: self.meta[name] for name in plain if name in self.meta}

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.function(*args, **self.bound, **options)


class Registry:
    """The components of one kind.

    Args:
        kind: what a person calls one ("model").
        variable: the name the registry is imported under, as decorators spell it.
        package: the package whose files hold the components.
    """

    def __init__(self, kind: str, variable: str, package: str) -> None:
        self.kind, self.variable, self.package = kind, variable, package
        self._entries: dict[str, Entry] = {}
        self._members: dict[str, Entry] = {}

    def register(self, name: str | None = None, **meta: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Decorator. The name is the function's, with ``_`` as ``-`` only where `name` says so.

        Args:
            meta: what is known of the component before it is called. ``formerly`` is a tuple of the names that it
                had before: recipes and checkpoints that say them still mean it.

        Raises:
            ValueError: the name is taken by another function, or is not a valid name.
        """

        def add(function: Callable[..., Any]) -> Callable[..., Any]:
            key = name or function.__name__
            if not NAME.fullmatch(key):
                raise ValueError(f"{self.kind} name {key!r} must match {NAME.pattern}")
            old = self._entries.get(key)
            if old is not None and old.function.__qualname__ != function.__qualname__:
                raise ValueError(f"{self.kind} {key!r} is registered twice")
            module = function.__module__
            if not module.startswith(self.package + ".") and (
                key not in self.found or self.found[key].module != module
            ):
                summary = (inspect.getdoc(function) or "").partition("\n")[0]
                self._admit(self.found, Found(key, module, summary, meta))
            self._entries[key] = Entry(self.kind, key, function, meta)
            return function

        return add

    @functools.cached_property
    def found(self) -> dict[str, Found]:
        """Every component and family (``timm:*``) by name, read from the source of the package and of plug-ins.

        Raises:
            InputError: a plug-in cannot be read, or takes a name that is taken.
        """
        result: dict[str, Found] = {}
        for entry in self._own():
            self._admit(result, entry)
        for plugin in plugins.installed(self.variable):
            for entry in plugin.components(self.variable):
                try:
                    self._admit(result, entry)
                except ValueError as error:
                    raise InputError(f"{plugin}: {error}", hint=f"pip uninstall {plugin.distribution}") from None
        return result

    def _own(self) -> Iterator[Found]:
        spec = importlib.util.find_spec(self.package)
        assert spec is not None and spec.submodule_search_locations
        for folder in spec.submodule_search_locations:
            for module, file in modules_below(Path(folder), self.package):
                yield from components_in(file, module, self.variable)

    def _admit(self, into: dict[str, Found], new: Found) -> None:
        """Add `new`.

        Raises:
            ValueError: one of its names is taken.
        """
        taken = {old: found for found in into.values() for old in found.meta.get("formerly", ())} | into
        for name in (new.name, *new.meta.get("formerly", ())):
            if name in taken:
                raise ValueError(
                    f"{self.kind} {name!r} is already registered by {plugins.source_of(taken[name].module)}"
                )
        into[new.name] = new

    def current(self, name: Any) -> Any:
        """`name`, or where it is the former name of a component the one that it has now."""
        if not isinstance(name, str) or name in self.found:
            return name
        return next((f.name for f in self.found.values() if name in f.meta.get("formerly", ())), name)

    def names(self) -> list[str]:
        """Every component's name, numbers in their order: resnet8 before resnet20."""
        return sorted((name for name in self.found if not name.endswith(":*")), key=natural)

    def families(self) -> list[str]:
        """The prefixes of families: ``timm`` for ``timm:*``."""
        return sorted(name.removesuffix(":*") for name in self.found if name.endswith(":*"))

    def members(self, family: str) -> list[str]:
        """The full names in a family; none where its library is not installed."""
        names = self._entry(family + ":*").meta["members"]()
        return sorted((f"{family}:{name}" for name in names), key=natural)

    def matching(self, part: str, start: bool = False) -> list[str]:
        """The names, those in families among them, that contain (or, with `start`, begin with) `part`."""
        every = self.names() + [name for family in self.families() for name in self.members(family)]
        return [name for name in every if (name.startswith(part) if start else part in name)]

    def get(self, name: str) -> Entry:
        """The component called `name`.

        Raises:
            InputError: there is none; the nearest names are suggested.
        """
        name = self.current(name)
        family, colon, member = name.partition(":")
        if colon and f"{family}:*" in self.found:
            return self._member(family, member)
        if not colon and (name in self.found or name in self._entries):  # by a program of one's own
            return self._entry(name)
        elsewhere = [f"{f}:{name}" for f in self.families() if f"{f}:{name}" in self.members(f)]
        expected = "did you mean " + " or ".join(elsewhere) + "?" if elsewhere else nearest(name, self.names())
        listing = f"bigmodel {LISTINGS.get(self.kind, 'recipe schema')}"
        raise UnknownName(f"unknown {self.kind} {name!r}", expected, f"{listing}; a plug-in's: --import FILE.py")

    def _entry(self, name: str) -> Entry:
        if name not in self._entries:
            plugins.import_component(self.found[name].module)
        return self._entries[name]

    def _member(self, family: str, member: str) -> Entry:
        """``family:member``: the family's function with `member` fixed, and what its `describe` says of it."""
        name = f"{family}:{member}"
        if name not in self._members:
            whole = self._entry(family + ":*")
            known = whole.meta["members"]()
            if known and member.partition(".")[0] not in known:
                what = f"unknown {self.kind} {name!r}"
                raise InputError(what, nearest(member, known), f"bigmodel models --search {member[:8]}")
            meta = {**whole.meta, "member": member, **whole.meta["describe"](member)}
            self._members[name] = replace(whole, name=name, meta=meta)
        return self._members[name]


def natural(name: str) -> list[tuple[int, str]]:
    """A sort key in which 8 comes before 20."""
    return [(int(p), "") if p.isdigit() else (-1, p) for p in re.split(r"(\d+)", name)]


LISTINGS = {"model": "models", "data set": "data"}

models = Registry("model", "models", "bigmodel_cli.models")
data = Registry("data set", "data", "bigmodel_cli.data")
augments = Registry("augmentation", "augments", "bigmodel_cli.data")
tasks = Registry("task", "tasks", "bigmodel_cli.tasks")
losses = Registry("loss", "losses", "bigmodel_cli.optim")
optimizers = Registry("optimizer", "optimizers", "bigmodel_cli.optim")
schedules = Registry("schedule", "schedules", "bigmodel_cli.optim")
methods = Registry("fine-tuning method", "methods", "bigmodel_cli.adapt")
compressions = Registry("compression method", "compressions", "bigmodel_cli.compress")
exports = Registry("export format", "exports", "bigmodel_cli.export")
examples = Registry("example of an export", "examples", "bigmodel_cli.export")
readers = Registry("reader of requests", "readers", "bigmodel_cli.serve")
figures = Registry("figure", "figures", "bigmodel_cli.insight")
metrics = Registry("metric", "metrics", "bigmodel_cli.metrics")
reports = Registry("report", "reports", "bigmodel_cli.insight")
loggers = Registry("logger", "loggers", "bigmodel_cli.insight")
commands = Registry("command", "commands", "bigmodel_cli.commands")
