"""``predict --out FILE``: a row for each sample, with the value of every class, label or number."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from json import dumps
from pathlib import Path
from typing import Any

from bigmodel_cli.commands.display import console
from bigmodel_cli.commands.display.pages import require_place
from bigmodel_cli.core.counted import counted
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.files import atomic_files

SUFFIXES = (".csv", ".jsonl")


def check_name(path: Path) -> None:
    """Raises InputError, before anything is predicted, unless the suffix says what to write, and there is a folder."""
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"--out {path}", "expected a name that ends in " + " or ".join(SUFFIXES))
    require_place(path)


def write_predictions(path: Path, rows: Sequence[Mapping[str, Any]], failed: int, json: bool) -> None:
    """Write `rows`, which have the same keys, as a table or as JSON lines, and say so; `failed` samples have none.

    Raises:
        MachineError: the file cannot be written.
    """
    _write(path, rows)
    said = {"event": "predictions", "file": str(path), "rows": len(rows), "failed": failed}
    console.print_json(said) if json else console.say(f"{counted(len(rows), 'prediction')}: {path}")


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    text = io.StringIO()
    if path.suffix.lower() == ".csv":
        writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    else:
        text.writelines(dumps(row, ensure_ascii=False) + "\n" for row in rows)
    atomic_files.write_text(path, text.getvalue())
