"""Registries: adding a component is one decorated function in one file, with no list to edit.

A component is a function. Its positional parameters are what the engine hands in
(a spec, a model's parameters, ...); its keyword-only parameters, with their types
and defaults, *are* its recipe schema: pydantic builds the check from the signature.
A family of networks is one function under several names, each registration fixing a
positional parameter: ``@models.register("resnet20", depth=20)``. A library's models are
one function under ``"timm:*"``, whose `members` lists the names after the colon.

Names are found by reading the source of the package (no import), so shell
completion and ``bigmodel models`` need no torch, and using one model imports one
file. ``tests/core/test_registry.py`` holds both views against each other.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import inspect
import re
import typing
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pydantic import BaseModel, ConfigDict, create_model

from bigmodel_cli.core.errors import InputError, nearest

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}(:\*)?")


@dataclass(frozen=True)
class Found:
    """What the source says of a component before anything is imported."""

    name: str
    module: str
    summary: str


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
        parameters = inspect.signature(self.function).parameters.values()
        own = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
        # Of these alone: the types of the others may be imported for the type checker only.
        declared = SimpleNamespace(__annotations__={name: p.annotation for name, p in own.items()})
        hints = typing.get_type_hints(declared, self.function.__globals__, include_extras=True)  # type: ignore[attr-defined]
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
            self._entries[key] = Entry(self.kind, key, function, meta)
            return function

        return add

    @functools.cached_property
    def found(self) -> dict[str, Found]:
        """Every component and family (``timm:*``) by name, read from the package's source without importing it."""
        spec = importlib.util.find_spec(self.package)
        assert spec is not None and spec.submodule_search_locations
        result: dict[str, Found] = {}
        for folder in spec.submodule_search_locations:
            for file in sorted(Path(folder).rglob("*.py")):
                source = file.read_text(encoding="utf-8")
                if f"@{self.variable}.register" not in source:
                    continue
                inside = ".".join(file.relative_to(folder).with_suffix("").parts)
                for entry in self._scan(source, f"{self.package}.{inside}"):
                    if entry.name in result:
                        raise ValueError(f"{self.kind} {entry.name!r} is registered twice")
                    result[entry.name] = entry
        return result

    def _scan(self, source: str, module: str) -> typing.Iterator[Found]:
        for node in ast.parse(source).body:
            for decorator in getattr(node, "decorator_list", ()):
                if not isinstance(node, ast.FunctionDef) or not isinstance(decorator, ast.Call):
                    continue
                if ast.unparse(decorator.func) != f"{self.variable}.register":
                    continue
                first = decorator.args[0] if decorator.args else None
                name = first.value if isinstance(first, ast.Constant) else node.name
                yield Found(str(name), module, (ast.get_docstring(node) or "").partition("\n")[0])

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
        family, colon, member = name.partition(":")
        if colon and f"{family}:*" in self.found:
            return self._member(family, member)
        if not colon and (name in self.found or name in self._entries):  # by a program of one's own
            return self._entry(name)
        elsewhere = [f"{f}:{name}" for f in self.families() if f"{f}:{name}" in self.members(f)]
        expected = "did you mean " + " or ".join(elsewhere) + "?" if elsewhere else nearest(name, self.names())
        raise InputError(
            f"unknown {self.kind} {name!r}", expected, f"bigmodel {LISTINGS.get(self.kind, 'recipe schema')}"
        )

    def _entry(self, name: str) -> Entry:
        if name not in self._entries:
            importlib.import_module(self.found[name].module)
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
figures = Registry("figure", "figures", "bigmodel_cli.insight")
reports = Registry("report", "reports", "bigmodel_cli.insight")
