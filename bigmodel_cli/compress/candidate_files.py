"""The small files of a search: what was measured, and what a candidate died of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bigmodel_cli.core.files import atomic_files
from bigmodel_cli.core.files.regular_files import read_regular
from bigmodel_cli.core.types import finite

DIED = "died.json"
MAX_STATE = 1 << 24  # bytes of a JSON file


def record_death(folder: Path, signal_name: str) -> None:
    """Note that the process that worked on the try in `folder` was ended by a signal: it is not tried again."""
    write_json(folder / DIED, {"signal": signal_name})


def died_of(folder: Path) -> str | None:
    """The signal that ended the try in `folder`, or None."""
    file = folder / DIED
    try:
        return str(dict(json.loads(read_regular(file, MAX_STATE))).get("signal")) if file.is_file() else None
    except (ValueError, TypeError):
        return None


def write_json(file: Path, values: Mapping[str, Any]) -> None:
    raw = (json.dumps(finite(values), indent=2) + "\n").encode()
    atomic_files.replace(file, lambda temporary: temporary.write_bytes(raw), lambda: len(raw))
