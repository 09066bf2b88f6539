"""The documentation as a site: it builds with every link checked, and has a page for all that is registered."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, environment

from bigmodel_cli.core import registry as registries
from bigmodel_cli.core.recipe import Recipe


def _build(config: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "-f", str(config), "-d", str(out)]
    without_network = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    return subprocess.run(command, capture_output=True, text=True, env={**environment(), **without_network})


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("material", reason="needs mkdocs-material, which the extra dev has")
    out = tmp_path_factory.mktemp("site")
    done = _build(ROOT / "mkdocs.yml", out)
    assert done.returncode == 0, done.stderr
    return out


def test_every_component_command_and_field_has_its_place(site: Path) -> None:
    for name in ("models", "data", "methods", "optimizers", "exports", "loggers"):
        text = (site / f"reference/{name}.html").read_text(encoding="utf-8")
        headings = set(re.findall(r"<h2 id=\"[^\"]*\">([^<]+)<", text))
        assert set(vars(registries)[name].found) <= headings, name
    commands = (site / "reference/commands.html").read_text(encoding="utf-8")
    assert [name for name in registries.commands.found if f"Usage: bigmodel {name}" not in commands] == []
    recipe = (site / "reference/recipe.html").read_text(encoding="utf-8")
    fields = [field for section in Recipe.model_fields.values() for field in section.annotation.model_fields]  # type: ignore[union-attr]
    assert [field for field in fields if f"<code>{field}</code>" not in recipe] == []


def test_the_pages_of_docs_are_on_it_and_it_fetches_nothing(site: Path) -> None:
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert pages | {"index"} <= {path.stem for path in site.glob("*.html")}
    for page in site.rglob("*.html"):
        loaded = re.findall(r"<(?:script|img|link)[^>]+(?:src|href)=\"?(https?://[^\"> ]+)", page.read_text("utf-8"))
        assert loaded == [], page


def test_tables_of_the_reference_show_what_is_meant(site: Path) -> None:
    """No column is empty, no escape is shown, and no path is told twice."""
    for page in (site / "reference").glob("*.html"):
        text = page.read_text("utf-8")
        for table in re.findall(r"<table>.*?</table>", text, re.DOTALL):
            rows = [re.findall(r"<td>(.*?)</td>", row, re.DOTALL) for row in table.split("<tr>")[2:]]
            assert all(any(column) for column in zip(*rows, strict=True)), (page.name, table)
            assert not re.search(r"\\\s*(&lt;|\|)", table), (page.name, table)
    start = (site / "index.html").read_text("utf-8")
    assert "Dockerfile" in start and "Dockerfile (" not in start


def test_a_link_that_leads_nowhere_fails_the_build(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="needs mkdocs, which the extra dev has")
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    validation = settings[settings.index("validation:") : settings.index("nav:\n")]
    (tmp_path / "mkdocs.yml").write_text(f"site_name: x\nstrict: true\n{validation}")
    (tmp_path / "docs").mkdir()
    for text, code in (("[a](index.md)", 0), ("[a](none.md)", 1), ("[a](index.md#none)", 1)):
        (tmp_path / "docs/index.md").write_text(text + "\n")
        assert _build(tmp_path / "mkdocs.yml", tmp_path / "out").returncode == code, text
        shutil.rmtree(tmp_path / "out", ignore_errors=True)


def _words() -> list[str]:
    text = (ROOT / "docs/coming-from.md").read_text(encoding="utf-8")
    ours = [line.rpartition(" | ")[2] for line in text.splitlines() if line.startswith("| ")]
    return re.findall(r"`([^`]+)`", " ".join(ours))


def test_our_words_beside_those_of_other_tools_exist() -> None:
    import typer

    from bigmodel_cli.cli import app

    group: Any = typer.main.get_command(app)
    context = group.make_context("bigmodel", ["--help"], resilient_parsing=True)
    built = {name: group.get_command(context, name) for name in group.list_commands(context)}
    flags = {flag for command in built.values() for option in command.params for flag in option.opts}
    sections = {name: set(field.annotation.model_fields) for name, field in Recipe.model_fields.items()}  # type: ignore[union-attr]
    kinds = {"model": registries.models, "data": registries.data, "start": registries.methods,
             "optimizer": registries.optimizers, "schedule": registries.schedules, "loss": registries.losses,
             "augment": registries.augments}  # fmt: skip
    for section, registry in kinds.items():
        own = [name for name in registry.found if not name.endswith(":*")]
        sections[section] |= {field for name in own for field in registry.get(name).schema.model_fields}
    words = _words()
    assert len(words) > 40
    for word in words:
        for flag in re.findall(r"(?<!\S)(--[a-z][a-z-]*)", word):
            assert flag in flags, word
        for section, field in re.findall(r"\b([a-z]+)\.([a-z_]+)\b(?!\()", re.sub(r"\S+/\S+|x\.yaml", "", word)):
            assert section not in sections or field in sections[section], word
        command = re.match(r"bigmodel ([a-z][a-z-]+)", word)
        assert command is None or command[1] in built, word
