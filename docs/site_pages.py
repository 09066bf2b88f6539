"""What the site has beside the pages of docs/: its first page, and a reference made from the registries.

A hook of mkdocs (see mkdocs.yml). ``make site`` builds site/; nothing is fetched.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from bigmodel_cli.cli import app
from bigmodel_cli.commands.display.option_tables import option_rows
from bigmodel_cli.core import registry as registries
from bigmodel_cli.core.recipe import Recipe
from bigmodel_cli.core.registry import Registry, natural

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ("models", "data", "tasks", "methods", "optimizers", "schedules", "losses", "augments", "exports",
             "metrics", "loggers")  # fmt: skip


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made here."""
    made = {"index.md": _index(), "reference/commands.md": _commands(), "reference/recipe.md": _recipe()}
    made |= {f"reference/{name}.md": _registry(vars(registries)[name]) for name in REFERENCE}
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **rest: Any) -> str:
    """A link to a file outside docs/ becomes its path in the repository, as text."""

    def kept(found: re.Match[str]) -> str:
        target = (ROOT / "docs" / found[2]).resolve()
        inside = target.is_relative_to(ROOT / "docs") or not target.is_relative_to(ROOT)
        return found[0] if inside else _named(found[1], str(target.relative_to(ROOT)))

    return re.sub(r"(?<!!)\[([^\]]+)\]\((?!https?:|#)([^)#]+)(?:#[^)]*)?\)", kept, markdown)


def _index() -> str:
    """README, whose links start at the root of the repository."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = text.replace("](docs/", "](")
    return re.sub(r"\[([^\]]+)\]\(((?:benchmarks/)?[A-Z][\w.-]*)\)", lambda found: _named(found[1], found[2]), text)


def _named(shown: str, path: str) -> str:
    """The text of a link, and the path in the repository that it leads to, unless the text says that."""
    return f"`{path}`" if shown.strip("`") == path else f"{shown} (`{path}`)"


def _cell(text: Any) -> str:
    """One line; what Markdown and HTML would read as theirs is escaped, but in code, where they read nothing."""
    parts = " ".join(str(text).split()).split("`")
    parts[::2] = [part.replace("|", r"\|").replace("<", "&lt;") for part in parts[::2]]
    return "`".join(parts)


def _table(heads: tuple[str, ...], rows: Iterator[tuple[Any, ...]]) -> str:
    """A table without the columns that are empty in every row."""
    cells = [[_cell(cell) for cell in row] for row in rows]
    told = [i for i in range(len(heads)) if any(row[i] for row in cells)]
    lines = [[row[i] for i in told] for row in (heads, ("---",) * len(heads), *cells)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _options(schema: dict[str, Any]) -> str:
    """The table of a schema's options; a sentence where there is none."""
    rows = option_rows(schema)
    if not rows:
        return "No options.\n"
    return _table(
        ("Option", "Default", "Values", "What it is"),
        (
            (f"`{row['option']}`", "required" if row["required"] else f"`{row['default']}`", row["values"],
             row["description"])
            for row in rows
        ),
    )  # fmt: skip


def _registry(registry: Registry) -> str:
    """A heading for each component, with its summary and its options."""
    title = registry.listing[0].upper() + registry.listing[1:]
    parts = [f"# {title}\n\n`bigmodel {registry.listing} NAME` prints the same on the command line.\n"
             if registry.listing in registries.commands.found else f"# {title}\n"]  # fmt: skip
    for name in sorted(registry.found, key=natural):
        parts.append(f"## {name.replace('_', chr(92) + '_')}\n\n{registry.found[name].summary}\n")
        if not name.endswith(":*"):
            parts.append(_options(registry.get(name).schema.model_json_schema()))
    return "\n".join(parts)


def _recipe() -> str:
    """Every section of a recipe and its fields."""
    parts = [
        "# Recipe fields\n\nEvery field of a recipe, set by `--set section.field=value` or in a YAML file. The options "
        "of the named component, such as `model.width`, stand beside the fields of its section.\n"
    ]
    for name, field in Recipe.model_fields.items():
        parts.append(f"## {name}\n\n{_options(field.annotation.model_json_schema())}")  # type: ignore[union-attr]
    return "\n".join(parts)


def _commands() -> str:
    """The help of every command."""
    group: Any = typer.main.get_command(app)
    top = group.make_context("bigmodel", ["--help"], resilient_parsing=True)
    parts = ["# Commands\n\nWhat `bigmodel COMMAND --help` prints.\n"]
    for name in group.list_commands(top):
        parts.append(f"## {name}\n")
        command = group.get_command(top, name)
        with command.context_class(command, info_name=f"bigmodel {name}", parent=None) as context:
            parts.append(f"```text\n{command.get_help(context).strip()}\n```\n")
            for inner in getattr(command, "commands", {}).values():
                with inner.context_class(inner, info_name=f"{name} {inner.name}", parent=None) as below:
                    parts.append(f"### {name} {inner.name}\n\n```text\n{inner.get_help(below).strip()}\n```\n")
    return "\n".join(parts)
