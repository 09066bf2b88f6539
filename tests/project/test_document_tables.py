"""The tables of the documentation say what the registries hold."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("document_tables", ROOT / "docs/tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_are_up_to_date(tables: ModuleType) -> None:
    assert tables.differences() == [], "run `make docs`"


def test_every_component_has_a_row_and_a_summary(tables: ModuleType) -> None:
    for name, registry in tables.all_registries().items():
        text = tables.table(name)
        assert [part for part in registry.found if f"`{part}`" not in text] == []
        assert [part for part, found in registry.found.items() if not found.summary] == []


def test_a_table_out_of_date_is_noticed(
    tables: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table: losses -->\n| stale |\n<!-- end -->\nafter\n")
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(tables, "pages", lambda: [page])
    monkeypatch.setattr(tables, "SOURCES", {})
    monkeypatch.setattr(tables.sys, "argv", ["tables.py", "--check"])
    assert tables.main() == 1
    said = capsys.readouterr().out
    assert "-| stale |" in said and "`cross_entropy`" in said and "no page has <!-- table: models -->" in said
    monkeypatch.setattr(tables.sys, "argv", ["tables.py"])
    assert tables.main() == 0
    text = page.read_text()
    assert text.startswith("before\n<!-- table: losses -->\n| Loss |") and text.endswith("<!-- end -->\nafter\n")
    assert "stale" not in text and tables.rewritten(text) == text
