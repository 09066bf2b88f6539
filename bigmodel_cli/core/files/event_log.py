"""Reads ``metrics.jsonl`` and ``status.json`` of a run folder, which a kill may have cut off, or a stranger made."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, TypeGuard

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.files.regular_files import read_regular, require_few_containers

MAX_LOG, MAX_STATUS = 1 << 28, 1 << 20  # bytes
LARGEST = (1 << 63) - 1
"""The largest whole number that a run writes. One of a thousand digits can be neither drawn nor formatted."""


def read_events(path: Path) -> list[dict[str, Any]]:
    """The events in a ``metrics.jsonl``. A line that a kill cut off, or that is no event, is passed over.

    A number that is not finite, or beyond 64 bits, is None.

    Raises:
        InputError: there is no such file, or it is larger than a run makes it.
    """
    raw = read_regular(path, MAX_LOG)
    require_few_containers(path, raw)
    events = []
    for line in raw.decode("utf-8", "replace").splitlines():
        try:
            event = json.loads(line, parse_int=_whole, parse_float=_finite, parse_constant=_finite)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict) and isinstance(event.get("event"), str):
            events.append(event)
    return events


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value of an event is a number: a stranger may have written a word."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _whole(text: str) -> int | None:
    return value if len(text) <= 20 and abs(value := int(text)) <= LARGEST else None


def _finite(text: str) -> float | None:
    return value if math.isfinite(value := float(text)) else None


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
