"""The tables of the documentation, made from what the package registers.

    python docs/tables.py            rewrites what stands between the markers of each page
    python docs/tables.py --check    exits 1 where a page differs, and prints the rows

A page asks for a table with ``<!-- table: methods -->`` and ends it with ``<!-- end -->``. The name is that of a
registry of ``bigmodel_cli.core.registry``, or one of `SOURCES`. ``<!-- table: methods options -->`` adds the options
of each component, which takes an import of it. Components that share a summary share a row.
"""

from __future__ import annotations

import difflib
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

from bigmodel_cli.core import registry as registries
from bigmodel_cli.core.registry import Registry, natural

ROOT = Path(__file__).resolve().parents[1]
MARKED = re.compile(r"(<!-- table: (\w+)( options)? -->\n).*?(<!-- end -->)", re.DOTALL)
SENTENCE = re.compile(r".+?[.](?<! al[.])(?=\s|$)")

Row = tuple[str, ...]


def pages() -> list[Path]:
    """The pages that may hold tables."""
    return [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]


def all_registries() -> dict[str, Registry]:
    """Every registry by the name that decorators and markers use."""
    return {name: value for name, value in vars(registries).items() if isinstance(value, Registry)}


def registered(registry: Registry, with_options: bool) -> Iterator[Row]:
    """The header, then a row for each group of components with one summary."""
    title = registry.kind[0].upper() + registry.kind[1:]
    yield (title, "Options", "What it is") if with_options else (title, "What it is")
    rows: dict[tuple[str, ...], list[str]] = {}
    for name in sorted(registry.found, key=natural):
        options = (_options(registry, name),) if with_options else ()
        rows.setdefault((*options, registry.found[name].summary), []).append(name)
    for rest, names in rows.items():
        yield (", ".join(f"`{name}`" for name in names), *rest)


def _options(registry: Registry, name: str) -> str:
    """The keyword-only parameters of a component; a family's (``timm:*``) follow from its members."""
    fields = () if name.endswith(":*") else registry.get(name).schema.model_fields
    return ", ".join(f"`{field}`" for field in fields)


def extras() -> Iterator[Row]:
    """Every extra of pyproject.toml and the packages that it installs."""
    yield ("Extra", "Installs")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for name, packages in project["optional-dependencies"].items():
        yield (f"`{name}`", ", ".join(re.split(r"[<>=!~ ;]", package)[0] for package in packages))


def recipes() -> Iterator[Row]:
    """Every recipe and the first sentence of the comment at its head."""
    yield ("Recipe", "What it trains")
    for file in sorted(ROOT.glob("recipes/**/*.yaml")):
        lines = file.read_text(encoding="utf-8").splitlines()
        head = " ".join(line.lstrip("# ") for line in lines[: next(i for i, x in enumerate(lines) if x[:1] != "#")])
        sentence = SENTENCE.match(head)
        yield (f"`{file.relative_to(ROOT)}`", sentence[0] if sentence else head)


SOURCES: dict[str, Callable[[], Iterator[Row]]] = {"extras": extras, "recipes": recipes}


def table(name: str, with_options: bool = False) -> str:
    """The Markdown table called `name`.

    Raises:
        KeyError: there is no such registry or source.
    """
    rows = SOURCES[name]() if name in SOURCES else registered(all_registries()[name], with_options)
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * lines[0].count(" | ") + "---|", *lines[1:], ""])


def rewritten(text: str) -> str:
    """`text` with each marked table made anew."""
    return MARKED.sub(lambda m: m[1] + table(m[2], bool(m[3])) + m[4], text)


def differences() -> list[str]:
    """Lines of a diff for each page whose tables are out of date, and a line for each table that no page has."""
    lines: list[str] = []
    shown: set[str] = set()
    for page in pages():
        old = page.read_text(encoding="utf-8")
        shown |= {found[2] for found in MARKED.finditer(old)}
        name = str(page.relative_to(ROOT))
        new = rewritten(old).splitlines()
        lines += difflib.unified_diff(old.splitlines(), new, name, name + ", made anew", lineterm="", n=0)
    missing = [name for name in (*all_registries(), *SOURCES) if name not in shown]
    return lines + [f"no page has <!-- table: {name} -->" for name in missing]


def main() -> int:
    if sys.argv[1:] == ["--check"]:
        found = differences()
        sys.stdout.writelines(line + "\n" for line in found)
        return 1 if found else 0
    for page in pages():
        old = page.read_text(encoding="utf-8")
        new = rewritten(old)
        if new != old:
            page.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
