"""House rules that a machine can see, over the package's own source."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "bigmodel_cli"
FILES = sorted(PACKAGE.rglob("*.py"))
FORBIDDEN = [
    r"pickle\.loads?\(", r"weights_only\s*=\s*False", r"torch\.hub", r"trust_remote_code", r"yaml\.load\(",
    r"(?<![.\w])eval\(", r"(?<![.\w])exec\(", r"shell\s*=\s*True", r"\.extractall\(",
]  # fmt: skip


def code(path: Path) -> str:
    """The source without comments and docstrings: prose may name what code must not do."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            body[0] = ast.Pass()
    return ast.unparse(tree)


@pytest.mark.parametrize("pattern", FORBIDDEN)
def test_nothing_unsafe(pattern: str) -> None:
    assert [p.name for p in FILES if re.search(pattern, code(p))] == []


def test_one_torch_load() -> None:
    found = [(p.name, n) for p in FILES if (n := len(re.findall(r"torch\.load\(", code(p))))]
    assert found == [("checkpoint.py", 1)]


def test_only_the_console_prints() -> None:
    prints = [p.name for p in FILES if re.search(r"(?<![.\w])print\(|sys\.std(out|err)\.write", code(p))]
    assert set(prints) <= {"console.py", "probes.py"}


def test_every_room_has_a_name_and_a_size() -> None:
    assert not [p for p in FILES if p.stem in {"utils", "helpers", "common", "misc"}]
    assert {p.name: n for p in FILES if (n := len(p.read_text().splitlines())) > 400} == {}


def test_the_loop_fits_a_screen() -> None:
    tree = ast.parse((PACKAGE / "engine/loop.py").read_text())
    fit = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "fit")
    assert fit.end_lineno is not None and fit.end_lineno - fit.lineno < 80


@pytest.mark.parametrize("module", ["bigmodel_cli.cli", "bigmodel_cli.core.recipe", "bigmodel_cli.core.registry"])
def test_no_torch_until_it_is_needed(module: str) -> None:
    program = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
