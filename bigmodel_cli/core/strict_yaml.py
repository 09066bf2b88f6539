"""A strict subset of YAML for recipes.

``1e-3`` is a float; ``yes``, ``no``, ``on``, ``off`` are strings; there are no sexagesimal or octal numbers
and no dates. Anchors, aliases, tags and duplicate keys are refused, as are files larger than 256 KB or nested
deeper than 32 levels.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.files.regular_files import open_regular

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32
MAX_PARTS = 20_000  # names, values, and beginnings and ends of lists; a second of reading
FLOAT = re.compile(
    r"[-+]?(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?$|[-+]?\d+[eE][-+]?\d+$|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
)
INT = re.compile(r"[-+]?(?:0|[1-9]\d*)$")


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2's core schema."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's own name and type)


def _resolver(tag: str, pattern: str | re.Pattern[str], first: str) -> None:
    compiled = re.compile(pattern) if isinstance(pattern, str) else pattern
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", compiled, list(first))


_resolver("bool", r"(?:true|True|TRUE|false|False|FALSE)$", "tTfF")
_resolver("null", r"(?:~|null|Null|NULL|)$", "~nN\0")
_resolver("int", INT, "-+0123456789")
_resolver("float", FLOAT, "-+.0123456789")
_Loader.yaml_implicit_resolvers.setdefault("", []).append(("tag:yaml.org,2002:null", re.compile(r"$")))


class _Dumper(yaml.SafeDumper):
    """Quotes strings that the loader above would read as another type."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_float(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
    if value != value:
        text = ".nan"
    elif value in (float("inf"), float("-inf")):
        text = ".inf" if value > 0 else "-.inf"
    else:
        text = repr(value)
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


_Dumper.add_representer(float, _represent_float)


@dataclass(frozen=True)
class Document:
    """A recipe file: its values, and the line (from 1) of every key path."""

    values: dict[str, Any]
    lines: dict[tuple[str, ...], int]


def read_yaml(path: Path) -> Document:
    """The recipe file at `path`.

    Raises:
        InputError: it cannot be read, or is not a strict recipe.
    """
    try:
        with open_regular(path) as file:
            raw = file.read(MAX_BYTES + 1)
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text", "expected a recipe in YAML") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}", hint="bigmodel recipes") from None
    except InputError as error:
        error.hint = "bigmodel recipes"
        raise
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str = "recipe") -> Document:
    """`text` as a recipe: a mapping with string keys."""
    node = _compose(text, source)
    if node is None:
        return Document({}, {})
    if not isinstance(node, yaml.MappingNode):
        raise InputError(f"{source}: not a mapping", "expected sections such as model: and train:")
    lines: dict[tuple[str, ...], int] = {}
    values = _build(node, source, (), lines)
    return Document(values, lines)


def parse_scalar(text: str) -> Any:
    """Parse the value of ``--set``: ``1e-3`` is a float, ``[64, 32]`` a list, ``yes`` a string, a lone mark itself."""
    if len(text) == 1 and not text.isalnum() and text != "~":  # a separator, which YAML may read as its own syntax
        return text
    node = _compose(text, "--set")
    return None if node is None else _build(node, "--set", (), {})


def dump_yaml(values: dict[str, Any]) -> str:
    """`values` as text that ``parse_yaml`` reads back as the same values of the same types."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def _compose(text: str, source: str) -> yaml.Node | None:
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise InputError(f"{source}: larger than {MAX_BYTES} bytes", "recipes are short")
    try:
        _check_events(text, source)
        loader = _Loader(text)
        try:
            return loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}" if mark else source
        # A problem that begins with "but" continues the sentence of its context.
        message = f"{error.context} {error.problem}" if (error.problem or "").startswith("but") else error.problem
        raise InputError(f"{where}: {message or 'not YAML'}", hint="check the indentation and quotes") from None
    except (yaml.YAMLError, UnicodeError) as error:
        raise InputError(f"{source}: not YAML: {str(error).splitlines()[0]}") from None


def _check_events(text: str, source: str) -> None:
    """Refuse aliases, tags and deep nesting while streaming, before any values are built."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=_Loader), 1):
        where = f"{source}:{event.start_mark.line + 1 if event.start_mark else 1}"
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise InputError(f"{where}: anchors and aliases are not allowed", "write the value out")
        tag = getattr(event, "tag", None)
        if tag:
            raise InputError(f"{where}: tag {tag} is not allowed", "expected plain values")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise InputError(f"{where}: nested deeper than {MAX_DEPTH}")
        if count > MAX_PARTS:
            raise InputError(f"{where}: more than {MAX_PARTS} names, values and brackets", "recipes are short")


def _build(node: yaml.Node, source: str, path: tuple[str, ...], lines: dict[tuple[str, ...], int]) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return [_build(item, source, path, lines) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != "tag:yaml.org,2002:str":
                raise InputError(f"{source}:{line}: a key is not text", "expected a name")
            key = key_node.value
            if key in result:
                raise InputError(f"{source}:{line}: duplicate key {key!r}", "expected each key once")
            lines[(*path, key)] = line
            result[key] = _build(value_node, source, (*path, key), lines)
        return result
    return _scalar(node, source)


def _scalar(node: yaml.Node, source: str) -> Any:
    kind, text = node.tag.rpartition(":")[2], node.value
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        # torch's integers have 64 bits, and int() refuses text of thousands of digits.
        if len(text.lstrip("-+0")) > 19 or not -(2**63) <= int(text) < 2**63:
            raise InputError(
                f"{source}:{node.start_mark.line + 1}: {text[:24]} is too large", "expected at most 64 bits"
            )
        return int(text)
    if kind == "float":
        return float(text.replace(".inf", "inf").replace(".nan", "nan") if text[-1].isalpha() else text)
    return text
