"""What the harnesses tried and what was lost, written by the harnesses themselves.

Under BIGMODEL_SOAK=1 every figure that a test records goes into ``faults/results.json``,
and ``faults/RESULTS.md`` is that file as a page. ``faults/test_results.py`` holds the two to each other.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bigmodel_cli.core.processes.cpu_count import available_cores

SOAK = bool(os.environ.get("BIGMODEL_SOAK"))
HERE = Path(__file__).parent / "faults"
HEAD = """# What was tried, and what was lost

Written by the tests under `make soak`; do not edit. A *negative control* breaks the property
on purpose, and the harness must then count losses.

| what | tried | lost | note | machine |
|---|---|---|---|---|
"""


_claimed: dict[str, str] = {}
"""What has been recorded in this process -> the test that did."""


def record(what: str, tried: int, lost: int, note: str = "", control: bool = False) -> None:
    """Keep a figure of a full run; one of a quick run says too little to keep.

    Raises:
        ValueError: another test has recorded it too: it would claim what that one tried.
    """
    test = current_test()
    if _claimed.setdefault(what, test) != test:
        raise ValueError(f"{what!r} is a figure of {_claimed[what]}")
    if not SOAK:
        return
    import torch

    cores = available_cores()
    machine = f"{platform.system()} {platform.machine()}, {cores} cores, Python {platform.python_version()}"
    row = {
        "test": test,
        "tried": tried,
        "lost": lost,
        "note": note,
        "control": control,
        "machine": f"{machine}, torch {torch.__version__}",
    }
    change(lambda rows: {**rows, what: row})


def change(edit: Callable[[dict[str, Any]], dict[str, Any]], folder: Path = HERE) -> None:
    """Write the rows that `edit` makes of those in `folder`; several processes may."""
    with (folder / "results.json").open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        text = file.read()
        rows = dict(sorted(edit(json.loads(text) if text else {}).items()))
        file.truncate(0)
        file.write(json.dumps(rows, indent=1) + "\n")
        file.flush()
        (folder / "RESULTS.md").write_text(page(rows), encoding="utf-8")


def current_test() -> str:
    """The test that runs, as pytest names it."""
    return os.environ["PYTEST_CURRENT_TEST"].rpartition(" (")[0]


def withdraw(test: str, folder: Path = HERE) -> None:
    """Drop what `test`, which has failed, claims from before; a figure that says why it failed stays."""

    def stays(row: dict[str, Any]) -> bool:
        return row.get("test") != test or (row["lost"] > 0) != row["control"]

    change(lambda rows: {what: row for what, row in rows.items() if stays(row)}, folder)


def share_of_pairs(first: Sequence[str], second: Sequence[str], whole: Sequence[str]) -> list[tuple[str, str]]:
    """Every pair under SOAK. Else each of `second` at least once, taking turns, and those in `whole` with all."""
    pairs = [(a, b) for a in first for b in second]
    if SOAK:
        return pairs
    return [(a, b) for a, b in pairs if b in whole or second.index(b) % len(first) == first.index(a)]


def page(rows: dict[str, Any]) -> str:
    lines = []
    for what, row in rows.items():
        name = what + " (negative control)" * row["control"]
        lines.append(f"| {name} | {row['tried']:,} | {row['lost']:,} | {row['note']} | {row['machine']} |")
    return HEAD + "\n".join(lines) + "\n"
