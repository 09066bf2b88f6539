"""The options of a component or of a recipe section as a table: default, allowed values, meaning."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bigmodel_cli.commands.display import console
from bigmodel_cli.core.registry import Registry

BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


def option_rows(schema: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row for each property of a JSON schema: option, default (None where it is required), values, description."""
    required, definitions = schema.get("required", ()), schema.get("$defs", {})
    return [
        {
            "option": name,
            "default": None if name in required else field.get("default"),
            "required": name in required,
            "values": _values(field, definitions),
            "description": field.get("description", ""),
        }
        for name, field in schema.get("properties", {}).items()
    ]


def _values(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """What a field may be, in words: ``integer > 0``, ``sigmoid, tanh or relu``."""
    if "$ref" in field:
        return _values(definitions.get(field["$ref"].rpartition("/")[2], {}), definitions)
    if "anyOf" in field or "oneOf" in field:
        kinds = [_values(part, definitions) for part in field.get("anyOf", field.get("oneOf"))]
        return " or ".join(dict.fromkeys(kinds))
    if "enum" in field:
        *others, last = (_shown(value) for value in field["enum"])
        return f"{', '.join(others)} or {last}" if others else last
    if "const" in field:
        return _shown(field["const"])
    kind = field.get("type", "any")
    if kind == "array":
        inner = field.get("items") or {}
        return f"list of {_values(inner, definitions)}" if inner else "list"
    bounds = " and ".join(f"{sign} {field[key]:g}" for key, sign in BOUNDS.items() if key in field)
    return f"{ {'string': 'text', 'object': 'mapping', 'boolean': 'true or false'}.get(kind, kind) } {bounds}".strip()


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(value)


def show_component(registry: Registry, name: str, section: str | None, json: bool) -> None:
    """What a component is and its options, with the way to set them; `section` is that of the recipe, if it has one.

    Raises:
        InputError: there is no such component.
    """
    entry = registry.get(name)
    key = entry.name if entry.name in registry.found else f"{entry.name.partition(':')[0]}:*"
    summary = registry.found[key].summary if key in registry.found else ""
    rows = option_rows(entry.schema.model_json_schema())
    if json:
        console.print_json({"name": entry.name, "summary": summary, "options": rows})
        return
    console.say(f"{entry.name}: {summary}")
    if not rows:
        console.say("it has no options")
        return
    show_options(rows)
    if section is not None:
        from bigmodel_cli.core.recipe import Recipe

        beside = f", or in a recipe below {section}:" if section in Recipe.model_fields else ""
        console.note(f"set with --set {section}.{rows[0]['option']}=VALUE{beside}")


def show_options(rows: Iterable[Mapping[str, Any]], title: str | None = None) -> None:
    """The rows of :func:`option_rows`."""
    rows = list(rows)
    described = any(row["description"] for row in rows)
    heads = ("option", "default", "values", *(("what it is",) if described else ()))
    cells = [
        (
            row["option"],
            "required" if row["required"] else _shown(row["default"]),
            row["values"],
            *((row["description"],) if described else ()),
        )
        for row in rows
    ]
    console.show(console.table(title, heads, cells))


def show_names(registry: Registry, json: bool) -> None:
    """Every component of a registry, a line each."""
    rows = [{"name": name, "summary": registry.found[name].summary} for name in registry.names()]
    if json:
        for row in rows:
            console.print_json(row)
        return
    console.show(console.table(None, (registry.kind, "description"), [(r["name"], r["summary"]) for r in rows]))
    console.note(f"options and defaults of one: bigmodel {registry.listing} NAME")
