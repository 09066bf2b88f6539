"""Services that tests ask: ``pytest_plugins = ("services",)``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from exported import shades, words
from serving import Running, Start, started

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports")
    shades(folder / "shades")
    shades(folder / "plain", plain=True)
    words(folder / "words")
    return folder


@pytest.fixture(scope="module")
def service(exports: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One for the tests of a module; it must end well whatever they did to it, and have said nothing of a bug."""
    running = started(exports / "shades", tmp_path_factory.mktemp("log") / "err", "--max-mb", "1", "--max-batch", "8",
                      "--max-pixels", "2000000")  # fmt: skip
    try:
        yield running
        assert running.stop() == 0
        assert "Traceback" not in running.error and "bug" not in running.error
    finally:
        running.process.kill()


@pytest.fixture
def start(exports: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts services with options; they are killed at the end."""
    all_of_them: list[Running] = []

    def begin(*options: Any, folder: str = "shades") -> Running:
        all_of_them.append(started(exports / folder, tmp_path / f"err{len(all_of_them)}", *options))
        return all_of_them[-1]

    yield begin
    for running in all_of_them:
        running.process.kill()
        running.process.wait()


@pytest.fixture
def stand_in(tmp_path: Path) -> Iterator[Start]:
    """Starts the service around a model that is a Python function: see stand_in.py."""
    all_of_them: list[Running] = []

    def begin(**options: Any) -> Running:
        command = [sys.executable, str(HERE / "stand_in.py"), json.dumps(options)]
        all_of_them.append(Running(command, tmp_path / f"err{len(all_of_them)}"))
        return all_of_them[-1]

    yield begin
    for running in all_of_them:
        running.process.kill()
        running.process.wait()
