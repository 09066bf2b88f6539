"""Finds the components that a source file registers, without importing it."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bigmodel_cli.core.errors import InputError


@dataclass(frozen=True)
class Found:
    """A component as its source declares it, before anything is imported.

    Args:
        module: the module that registers it; importing it makes the component available.
        summary: the first line of its docstring.
        meta: the keyword arguments of its registration. A value that is not a literal (a function, a call) is
            ``...``, so that its presence can be tested without an import.
    """

    name: str
    module: str
    summary: str
    meta: Mapping[str, Any] = field(default_factory=dict)


def modules_below(folder: Path, package: str) -> Iterator[tuple[str, Path]]:
    """Each module in `folder`, the folder of `package`, with its file, in the order of the file names."""
    for file in sorted(folder.rglob("*.py")):
        inside = file.relative_to(folder).with_suffix("").parts
        yield ".".join((package, *inside)).removesuffix(".__init__"), file


def components_in(file: Path, module: str, variable: str) -> list[Found]:
    """The functions in `file` decorated with ``@<variable>.register(...)``: one entry for each registered name.

    Raises:
        InputError: the file is not valid Python; the message names the line.
    """
    source = file.read_text(encoding="utf-8")
    if f"@{variable}.register" not in source:  # parsing is slow
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
    """The module-level constants with literal values."""
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
