"""``predict --out FILE``: a row for each sample, with the value of every class, label or number."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.files import atomic_files

SUFFIXES = (".csv", ".jsonl")


def check_name(path: Path) -> None:
    """Raises InputError, before anything is predicted, unless the suffix says what to write."""
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"--out {path}", "expected a name that ends in " + " or ".join(SUFFIXES))


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `rows`, which have the same keys, as a table or as JSON lines.

    Raises:
        MachineError: the file cannot be written.
    """
    text = io.StringIO()
    if path.suffix.lower() == ".csv":
        writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    else:
        text.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    atomic_files.write_text(path, text.getvalue())
