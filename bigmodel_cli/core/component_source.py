"""What the source of a file says of the components in it: read, never imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bigmodel_cli.core.errors import InputError


@dataclass(frozen=True)
class Found:
    """What the source says of a component before anything is imported.

    Args:
        module: the module to import for it; a plug-in's file where it was run by its path.
        summary: the first line of its docstring.
        meta: the keywords of its registration. A value that the source does not spell out (a function, a call) is
            ``...``: that there is one can be asked without importing it.
    """

    name: str
    module: str
    summary: str
    meta: Mapping[str, Any] = field(default_factory=dict)


def modules_below(folder: Path, package: str) -> Iterator[tuple[str, Path]]:
    """Each module below the folder of `package`, with its file, in the order of the files' names."""
    for file in sorted(folder.rglob("*.py")):
        inside = file.relative_to(folder).with_suffix("").parts
        yield ".".join((package, *inside)).removesuffix(".__init__"), file


def components_in(file: Path, module: str, variable: str) -> list[Found]:
    """The functions in `file` that are decorated with ``@<variable>.register(...)``, each under every name it gets.

    Raises:
        InputError: the file is no Python; the line is named.
    """
    source = file.read_text(encoding="utf-8")
    if f"@{variable}.register" not in source:  # parsing is what takes the time
        return []
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise InputError(f"{file}:{error.lineno}: {error.msg}", "expected Python") from None
    constants = _constants(tree)
    return [
        _found(node, decorator, module, constants)
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        for decorator in node.decorator_list
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == f"{variable}.register"
    ]


def _found(node: ast.FunctionDef, decorator: ast.Call, module: str, constants: Mapping[str, Any]) -> Found:
    meta: dict[str, Any] = {}
    for keyword in decorator.keywords:
        value = _value(keyword.value, constants)
        if keyword.arg is not None:
            meta[keyword.arg] = value
        elif isinstance(value, dict):  # **SHARED
            meta |= value
    name = _value(decorator.args[0], constants) if decorator.args else node.name
    return Found(str(name), module, (ast.get_docstring(node) or "").partition("\n")[0], meta)


def _constants(tree: ast.Module) -> dict[str, Any]:
    """The module's constants whose values the source spells out."""
    found: dict[str, Any] = {}
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(target, ast.Name) and node.value is not None:
            value = _value(node.value, {})
            if value is not ...:
                found[target.id] = value
    return found


def _value(node: ast.expr, constants: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Name):
        return constants.get(node.id, ...)
    if isinstance(node, ast.Dict) and all(isinstance(key, ast.Constant) for key in node.keys):
        return {key.value: _value(value, constants) for key, value in zip(node.keys, node.values, strict=True)}  # type: ignore[union-attr]
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ...
