"""Merges layers into a recipe: defaults <- recipe file <- flags <- --set. Records the origin of every value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from bigmodel_cli.core.addresses import remember
from bigmodel_cli.core.errors import InputError, nearest
from bigmodel_cli.core.recipe import COMPONENTS, Recipe, section_type
from bigmodel_cli.core.registry import data, models, tasks
from bigmodel_cli.core.strict_yaml import Document, parse_scalar

KeyPath = tuple[str, ...]


@dataclass(frozen=True)
class Layer:
    """Values from one source; for a file, with the line of each value."""

    source: str
    values: Mapping[str, Any]
    lines: Mapping[KeyPath, int] = field(default_factory=dict)

    def locate(self, path: KeyPath) -> str:
        return f"{self.source}:{self.lines[path]}" if path in self.lines else self.source


@dataclass(frozen=True)
class Resolved:
    """A validated recipe, and the origin of each of its values."""

    recipe: Recipe
    origin: Mapping[KeyPath, str]


def document_layer(document: Document, source: str) -> Layer:
    """A recipe file as a layer, without its ``search`` section, which only ``bigmodel tune`` reads."""
    return Layer(source, {k: v for k, v in document.values.items() if k != "search"}, document.lines)


def set_layer(assignments: Iterable[str]) -> Layer:
    """``--set section.key=value`` as a layer.

    Raises:
        InputError: an assignment is not of that form.
    """
    values: dict[str, Any] = {}
    for text in assignments:
        key, equals, raw = text.partition("=")
        parts = tuple(key.strip().split("."))
        if not equals or len(parts) != 2 or not all(parts):
            raise InputError(f"--set {text}", "expected section.key=value", "bigmodel recipe fields")
        values.setdefault(parts[0], {})[parts[1]] = parse_scalar(raw)
    return Layer("--set", values)


def resolve(layers: Iterable[Layer]) -> Resolved:
    """Merge `layers` (later ones take precedence) into one recipe and validate it.

    A layer that names another component drops the options that earlier layers gave to the old one. A model may be
    registered with ``defaults`` of its own for other sections; they come before the layers.

    Raises:
        InputError: unknown section, component or key, or a value of the wrong type.
    """
    # The defaults are a layer too, so that --lr alone applies to the default optimizer.
    merged: dict[str, dict[str, Any]] = {
        name: field.get_default().model_dump() for name, field in Recipe.model_fields.items() if not field.is_required()
    }
    origin: dict[KeyPath, str] = {}
    layers = list(layers)
    for section, values in _model_defaults(layers).items():
        _drop_options(section, values, merged[section], origin)
        merged[section].update(values)
    for layer in layers:
        _check_sections(layer)
        for section, given in layer.values.items():
            into, values = merged.setdefault(section, {}), dict(given)
            if section in COMPONENTS:
                key = section_type(section).key
                if key in values:  # the component may have been renamed
                    values[key] = COMPONENTS[section].current(values[key])
                _drop_options(section, values, into, origin)
            for key, value in values.items():
                into[key] = remember(value)
                origin[section, key] = layer.locate((section, key))
    _choose_data(merged, origin)
    _choose_loss(merged, origin)
    _choose_batchnorm(merged, origin)
    if "name" not in merged.get("model", {}):
        raise InputError("no model named", "give a MODEL, or a recipe with a model", "bigmodel models")
    return Resolved(_validate(merged, origin), origin)


def _model_defaults(layers: Iterable[Layer]) -> Mapping[str, Mapping[str, Any]]:
    """What the model that `layers` name was registered with as its own ``defaults``, by section; empty for most."""
    named = [layer.values["model"] for layer in layers if isinstance(layer.values.get("model"), Mapping)]
    names = [values["name"] for values in named if isinstance(values.get("name"), str)]
    try:
        return models.get(names[-1]).meta.get("defaults", {}) if names else {}
    except InputError:  # an unknown name is told where the recipe is checked, with its line
        return {}


def _choose_data(merged: dict[str, dict[str, Any]], origin: Mapping[KeyPath, str]) -> None:
    """The built-in data of the model's task, where no layer names data."""
    name = models.current(merged.get("model", {}).get("name"))
    if ("data", "name") in origin or not isinstance(name, str) or name not in models.found:
        return
    task = models.get(name).meta.get("task")
    default = tasks.found[task].meta.get("default_data") if task in tasks.found else None
    if default:
        merged["data"]["name"] = default


def _choose_loss(merged: dict[str, dict[str, Any]], origin: Mapping[KeyPath, str]) -> None:
    """The loss of the recipe's task, where no layer names one."""
    name, task = data.current(merged["data"]["name"]), merged["data"].get("task")
    if not isinstance(name, str) or not isinstance(task, str | None):
        return  # told where the recipe is checked
    found = data.found.get(name)
    task = task or (found.meta.get("task") if found else None)
    default = tasks.found[task].meta.get("default_loss") if task in tasks.found else None
    if default and ("loss", "name") not in origin:
        merged["loss"] = {"name": default, **{k: v for k, v in merged["loss"].items() if k != "name"}}


def _choose_batchnorm(merged: dict[str, dict[str, Any]], origin: Mapping[KeyPath, str]) -> None:
    """GroupNorm for a network that is trained privately from random weights: BatchNorm mixes the samples of a batch."""
    start = merged["start"]
    from_zero = start.get("checkpoint") is None and not start.get("pretrained")
    if merged["privacy"].get("epsilon") is not None and from_zero and ("model", "batchnorm") not in origin:
        merged.get("model", {})["batchnorm"] = "group"


def _drop_options(section: str, values: Mapping[str, Any], into: dict[str, Any], origin: dict[KeyPath, str]) -> None:
    """Remove the options of the old component from `into` if `values` names another one."""
    if section not in COMPONENTS:
        return
    kind = section_type(section)
    if kind.key in values and kind.key in into and values[kind.key] != into[kind.key]:
        for key in [k for k in into if k not in kind.model_fields or k in kind.component_fields]:
            del into[key]
            origin.pop((section, key), None)


def _check_sections(layer: Layer) -> None:
    for section, values in layer.values.items():
        known = Recipe.model_fields
        if section not in known:
            where = layer.locate((section,))
            raise InputError(f"{where}: unknown section {section!r}", nearest(section, known), "bigmodel recipe fields")
        if not isinstance(values, Mapping):
            where = layer.locate((section,))
            raise InputError(f"{where}: {section} is {values!r}", f"expected keys below {section}:")


def _validate(merged: dict[str, dict[str, Any]], origin: Mapping[KeyPath, str]) -> Recipe:
    try:
        recipe = Recipe(**merged)  # type: ignore[arg-type]
    except ValidationError as error:
        raise explain(error, origin) from None
    checked = recipe.model_dump()
    for section, registry in COMPONENTS.items():
        component = getattr(recipe, section)
        entry = _named(registry, component.registered_name, origin.get((section, component.key)))
        typed = {k: v for k, v in checked[section].items() if k in type(component).model_fields}
        try:
            checked[section] = typed | entry.options(component.options, section)
        except ValidationError as error:
            raise explain(error, origin, section, entry.schema.model_fields) from None
    return Recipe(**checked)


def _named(registry: Any, name: str, where: str | None) -> Any:
    try:
        return registry.get(name)
    except InputError as error:
        if where and ":" in where:
            raise InputError(f"{where}: {error.what}", error.expected, error.hint) from None
        raise


def explain(
    error: ValidationError,
    origin: Mapping[KeyPath, str],
    section: str | None = None,
    fields: Iterable[str] = (),
    listing: str = "",
) -> InputError:
    """A pydantic error as one line: the origin, the key, its value, what was expected, and how many more there are.

    `listing` is the command that lists what may be set, if it is not that of a recipe's section.
    """
    problems = error.errors()
    first = problems[0]
    path = tuple(str(p) for p in first["loc"])
    path = path if section is None else (section, *path)
    where = origin.get(path[:2], "recipe")
    key = ".".join(path[:2])
    if first["type"] == "extra_forbidden":
        known = fields or getattr(Recipe.model_fields[path[0]].annotation, "model_fields", {})
        what, expected = f"{where}: unknown key {key}", nearest(path[1], known)
    elif first["type"] == "missing":
        what, expected = f"{where}: {key} is missing", "it has no default"
    else:
        message = first["msg"].removeprefix("Value error, ")
        message = message[0].lower() + message[1:]
        what, expected = f"{where}: {key} = {first['input']!r}", message.replace("input should be", "expected")
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return InputError(what, expected + more, listing or f"bigmodel recipe fields {path[0]}")
