"""``--log csv``: a table for spreadsheets and pandas, with one row per epoch."""

from __future__ import annotations

import csv as table
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bigmodel_cli.core.files.atomic_files import open_own
from bigmodel_cli.core.registry import loggers

Event = Mapping[str, Any]


@loggers.register(files=("metrics.csv",))
@contextmanager
def csv(folder: Path, history: Sequence[Event]) -> Iterator[Callable[[Event], None]]:
    """metrics.csv in the run folder: a row per epoch, a column per value."""
    rows = [_row(event) for event in history if event["event"] == "epoch"]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    path = folder / "metrics.csv"

    def write(event: Event) -> None:
        if event["event"] != "epoch":
            return
        rows.append(_row(event))
        new = [key for key in rows[-1] if key not in columns]
        columns.extend(new)
        if new:  # evaluated epochs have more columns
            _write(path, columns, rows, "w")
        else:
            _write(path, columns, rows[-1:], "a")

    _write(path, columns, rows, "w")
    yield write


def _row(event: Event) -> dict[str, Any]:
    return {key: value for key, value in event.items() if key != "event"}


def _write(path: Path, columns: Sequence[str], rows: Sequence[Event], mode: str) -> None:
    with open_own(path, os.O_APPEND if mode == "a" else os.O_TRUNC) as file:
        writer = table.DictWriter(file, columns, lineterminator="\n")
        if mode == "w" and columns:
            writer.writeheader()
        writer.writerows(rows)
