"""Reads ``metrics.jsonl`` and ``status.json`` of a run folder, which a kill may have cut off, or a stranger made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.files.regular_files import read_regular, require_few_containers

MAX_LOG, MAX_STATUS = 1 << 28, 1 << 20  # bytes


def read_events(path: Path) -> list[dict[str, Any]]:
    """The events in a ``metrics.jsonl``. A line that a kill cut off, or that is no event, is passed over.

    Raises:
        InputError: there is no such file, or it is larger than a run makes it.
    """
    raw = read_regular(path, MAX_LOG)
    require_few_containers(path, raw)
    events = []
    for line in raw.decode("utf-8", "replace").splitlines():
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict) and isinstance(event.get("event"), str):
            events.append(event)
    return events


def read_state(folder: Path) -> str | None:
    """The state of the run in `folder`: running, done, interrupted or failed; None where no run says it."""
    state = read_status(folder).get("state")
    return state if isinstance(state, str) else None


def read_status(folder: Path) -> dict[str, Any]:
    """What ``status.json`` in `folder` says; {} where there is none, or it is damaged."""
    try:
        found = json.loads(read_regular(folder / "status.json", MAX_STATUS))
    except (InputError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
