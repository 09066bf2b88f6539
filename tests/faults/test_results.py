"""RESULTS.md says what the harnesses measured, at the figures that were promised, and nothing else."""

from __future__ import annotations

import json

import figures

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
