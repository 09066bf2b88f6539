"""RESULTS.md says what the harnesses measured, at the figures that were promised, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import figures
import pytest

PROMISED = {
    "SIGKILL while saving": 200,
    "SIGKILL of the command, resumed to the same bits": 20,
    **{
        f"stop at every step, resumed to the same bits: {name}": 19
        for name in ("adamw", "adamw-ema", "momentum", "momentum-ema")
    },
    "signal to the process group": 50,
    "checkpoint with one bit flipped": 3000,
    "checkpoint with a range zeroed": 1000,
    "checkpoint cut off": 1500,
    "full disk": 10,
    "simultaneous starts in one folder": 20,
    "out of memory at step 3": 1,
    "SIGKILL of whole processes, resumed to the same bits": 20,
    "SIGKILL of a rank of 2 at a random moment, started again to the same bits": 20,
    "two hosts, SIGKILL of a rank, ended with the bits of an undisturbed run": 1,
    "two hosts, one cut off": 1,
    "hostile checkpoint": 40,
    "mutated image": 300,
    "mutated recipe": 5000,
}
"""The least number of trials, by the name that a test records."""


def rows() -> dict[str, dict[str, object]]:
    return json.loads((figures.HERE / "results.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def test_the_page_is_what_was_measured() -> None:
    assert (figures.HERE / "RESULTS.md").read_text(encoding="utf-8") == figures.page(rows())


def test_every_promise_was_tried_in_full_and_kept() -> None:
    found = rows()
    for what, least in PROMISED.items():
        assert int(str(found[what]["tried"])) >= least, what
    for what, row in found.items():
        assert (int(str(row["lost"])) > 0) == row["control"], what


def test_every_figure_comes_from_a_test() -> None:
    """A row that no test records was written by hand, or outlived its test."""
    tests = figures.HERE.parent
    source = "".join(p.read_text(encoding="utf-8") for p in tests.rglob("test_*.py") if p.name != "test_results.py")
    assert [what for what in rows() if what.split(": ")[0] not in source] == []
    named = {what: row["test"] for what, row in rows().items() if "test" in row}  # not in rows of earlier versions
    for what, test in named.items():
        path, _, function = str(test).partition("[")[0].partition("::")
        assert f"def {function}(" in (tests.parent / path).read_text(encoding="utf-8"), what


def test_a_figure_has_one_test_and_does_not_outlive_its_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row of 264 misuses was written by the first of them that passed."""
    monkeypatch.setattr(figures, "_claimed", {})
    figures.record("a figure", 1, 0)
    figures.record("a figure", 2, 0)
    monkeypatch.setenv("PYTEST_CURRENT_TEST", "tests/x.py::test_y (call)")
    with pytest.raises(ValueError, match="is a figure of"):
        figures.record("a figure", 3, 0)
    found = {
        f"{test} {lost} {control}": {
            "test": test,
            "tried": 9,
            "lost": lost,
            "note": "",
            "control": control,
            "machine": "",
        }
        for test in ("failed", "passed")
        for lost in (0, 1)
        for control in (False, True)
    }
    figures.change(lambda rows: found, tmp_path)
    figures.withdraw("failed", tmp_path)
    left = json.loads((tmp_path / "results.json").read_text())
    assert found.keys() - left.keys() == {"failed 0 False", "failed 1 True"}
    assert (tmp_path / "RESULTS.md").read_text() == figures.page(left)
