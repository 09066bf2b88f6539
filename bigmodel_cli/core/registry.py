"""Registries: adding a component is one decorated function in one file, with no list to edit.

A component is a function. The engine passes its positional parameters (a spec, a
model's parameters, ...). Its keyword-only parameters, with their types and defaults,
*are* its recipe schema: pydantic builds the validation from the signature.
A family of networks is one function under several names, each registration fixing a
positional parameter: ``@models.register("resnet20", depth=20)``. A library's models are
one function under ``"timm:*"``, whose `members` lists the names after the colon.

Names are found by parsing the source of the package, without importing it. So shell
completion and ``bigmodel models`` need no torch, and using one model imports one
file; ``tests/project/test_source_rules.py`` compares the two views. Plug-ins
(:mod:`bigmodel_cli.core.plugins`) add components, but cannot reuse a registered name.
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
    """No component has that name, or its plug-in is not installed."""


@dataclass(frozen=True)
class Entry:
    """One registered component: its function, the keyword arguments of its registration, and its schema."""

    kind: str
    name: str
    function: Callable[..., Any]
    meta: dict[str, Any]

    @functools.cached_property
    def schema(self) -> type[BaseModel]:
        """The recipe schema, built from the keyword-only parameters of the function."""
        from pydantic import ConfigDict, create_model  # slow to import: a fifth of the run time of bigmodel --help

        parameters = inspect.signature(self.function).parameters.values()
        own = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
        # Only the options' types are resolved: other types may be imported under TYPE_CHECKING only.
        declared = SimpleNamespace(__annotations__={name: p.annotation for name, p in own.items()})
        namespace = inspect.unwrap(self.function).__globals__  # type: ignore[attr-defined]  # of the defining module
        hints = typing.get_type_hints(declared, namespace, include_extras=True)
        fields: dict[str, Any] = {
            name: (hints[name], ... if p.default is p.empty else p.default) for name, p in own.items()
        }
        config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
        return create_model(self.name, __config__=config, **fields)

    def options(self, raw: dict[str, Any], section: str) -> dict[str, Any]:
        """Validate `raw`, convert its types and fill in the defaults.

        Raises:
            pydantic.ValidationError: its locations are relative to `section`;
                :func:`bigmodel_cli.core.resolve.explain` turns it into one line.
        """
        return {k: getattr(model, k) for model in [self.schema(**raw)] for k in self.schema.model_fields}

    @functools.cached_property
    def bound(self) -> dict[str, Any]:
        """The positional parameters that the registration fixes, so that one function can serve several names."""
        parameters = inspect.signature(self.function).parameters.values()
        plain = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        return {name: self.meta[name] for name in plain if name in self.meta}

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.function(*args, **self.bound, **options)


class Registry:
    """The components of one kind.

    Args:
        kind: the noun for one component, in messages ("model").
        variable: the name of the registry's variable, as in its decorator.
        package: the package whose files hold the components.
        listing: the command that lists them, if there is one.
    """

    def __init__(self, kind: str, variable: str, package: str, listing: str | None = None) -> None:
        self.kind, self.variable, self.package, self.listing = kind, variable, package, listing
        self._entries: dict[str, Entry] = {}
        self._members: dict[str, Entry] = {}

    def register(self, name: str | None = None, **meta: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Decorator that registers a function under `name`, or else under the function's own name.

        Args:
            meta: properties that can be read without calling the component. ``formerly`` is a tuple of its former
                names, which recipes and checkpoints may still use.

        Raises:
            ValueError: the name is taken by another function, or is not a valid name.
        """

        def add(function: Callable[..., Any]) -> Callable[..., Any]:
            key = name or function.__name__
            if not NAME.fullmatch(key):
                raise ValueError(f"{self.kind} name {key!r} must match {NAME.pattern}")
            old = self._entries.get(key)
            if old is not None and old.function.__qualname__ != function.__qualname__:
                by = plugins.source_of(old.function.__module__)
                raise ValueError(f"{self.kind} {key!r} is already registered by {by}")
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
            InputError: a plug-in cannot be read, or uses a name that is already registered.
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
        """Add `new` to `into`.

        Raises:
            ValueError: one of its names is already registered.
        """
        taken = {old: found for found in into.values() for old in found.meta.get("formerly", ())} | into
        for name in (new.name, *new.meta.get("formerly", ())):
            if name in taken:
                raise ValueError(
                    f"{self.kind} {name!r} is already registered by {plugins.source_of(taken[name].module)}"
                )
        into[new.name] = new

    def current(self, name: Any) -> Any:
        """The current name of a component that was renamed, or written another way (``SGD``, ``ResNet-18``).

        Otherwise `name` itself.
        """
        if not isinstance(name, str) or name in self.found:
            return name
        renamed = next((f.name for f in self.found.values() if name in f.meta.get("formerly", ())), None)
        if renamed is not None:
            return renamed
        alike = [found for found in self.found if _plain(found) == _plain(name)]
        return alike[0] if len(alike) == 1 else name

    def names(self) -> list[str]:
        """Every component's name, in natural order: resnet8 before resnet20."""
        return sorted((name for name in self.found if not name.endswith(":*")), key=natural)

    def families(self) -> list[str]:
        """The prefixes of families: ``timm`` for ``timm:*``."""
        return sorted(name.removesuffix(":*") for name in self.found if name.endswith(":*"))

    def members(self, family: str) -> list[str]:
        """The full names in a family; empty if its library is not installed."""
        names = self._entry(family + ":*").meta["members"]()
        return sorted((f"{family}:{name}" for name in names), key=natural)

    def matching(self, part: str, start: bool = False) -> list[str]:
        """The names, including those of family members, that contain (or, with `start`, begin with) `part`."""
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
        if not colon and (name in self.found or name in self._entries):  # registered at run time
            return self._entry(name)
        elsewhere = [f"{f}:{name}" for f in self.families() if f"{f}:{name}" in self.members(f)]
        expected = "did you mean " + " or ".join(elsewhere) + "?" if elsewhere else nearest(name, self.names())
        listing = f"bigmodel {self.listing or 'recipe fields'}"
        raise UnknownName(f"unknown {self.kind} {name!r}", expected, f"{listing}; for a plug-in: --import FILE.py")

    def _entry(self, name: str) -> Entry:
        if name not in self._entries:
            try:
                plugins.import_component(self.found[name].module)
            except InputError:
                self._entries.pop(name, None)  # registered before its file failed: it fails again when asked for again
                raise
        return self._entries[name]

    def _member(self, family: str, member: str) -> Entry:
        """The entry of ``family:member``: the family's function with `member` fixed, and the meta of its `describe`."""
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
    """A sort key for natural order: 8 before 20."""
    return [(int(p), "") if p.isdigit() else (-1, p) for p in re.split(r"(\d+)", name)]


def _plain(name: str) -> str:
    return re.sub(r"[-_ ]", "", name.lower())


models = Registry("model", "models", "bigmodel_cli.models", "models")
data = Registry("data set", "data", "bigmodel_cli.data", "data")
tokenizers = Registry("tokenizer", "tokenizers", "bigmodel_cli.core.tokenizers")
augments = Registry("augmentation", "augments", "bigmodel_cli.data", "augmentations")
tasks = Registry("task", "tasks", "bigmodel_cli.tasks", "tasks")
answers = Registry("kind of answer", "answers", "bigmodel_cli.tasks")
losses = Registry("loss", "losses", "bigmodel_cli.optim", "losses")
optimizers = Registry("optimizer", "optimizers", "bigmodel_cli.optim", "optimizers")
schedules = Registry("schedule", "schedules", "bigmodel_cli.optim", "schedules")
methods = Registry("fine-tuning method", "methods", "bigmodel_cli.adapt", "methods")
compressions = Registry("compression method", "compressions", "bigmodel_cli.compress", "compressions")
exports = Registry("export format", "exports", "bigmodel_cli.export", "formats")
examples = Registry("example of an export", "examples", "bigmodel_cli.export")
readers = Registry("reader of requests", "readers", "bigmodel_cli.serve")
figures = Registry("figure", "figures", "bigmodel_cli.insight")
metrics = Registry("metric", "metrics", "bigmodel_cli.metrics", "metrics")
reports = Registry("report", "reports", "bigmodel_cli.insight")
report_figures = Registry("figure of a report", "report_figures", "bigmodel_cli.insight")
explanations = Registry("explanation method", "explanations", "bigmodel_cli.insight", "explain --help")
conformal_scores = Registry("conformal score", "conformal_scores", "bigmodel_cli.insight")
corruptions = Registry("corruption", "corruptions", "bigmodel_cli.data")
views = Registry("view of a sample", "views", "bigmodel_cli.insight")
loggers = Registry("logger", "loggers", "bigmodel_cli.insight", "loggers")
lessons = Registry("lesson", "lessons", "bigmodel_cli.lessons", "lesson")
commands = Registry("command", "commands", "bigmodel_cli.commands", "--help")
