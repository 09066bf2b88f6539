"""Commands that run an export: its runtime is native code, which runs in a child process (``supervised.py``)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bigmodel_cli.core.errors import BigmodelError, MachineError

EXPORT = "export.json"


def runs_export(given: Mapping[str, Any]) -> bool:
    """Whether one of the models that a command was `given` is an export folder, or may be, at an address."""
    return bool(_exports(given))


def runtime_died(given: Mapping[str, Any], child: int, signal_name: str) -> BigmodelError:
    """The error for a command whose child died."""
    shown = " or ".join(str(path) for path in _exports(given))
    cause = "out of memory, or a fault in the runtime" if signal_name == "SIGKILL" else "a fault in the runtime"
    hint = "bigmodel formats lists others to export to"
    return MachineError(f"{shown}: its process was ended by {signal_name}", cause, hint)


def _exports(given: Mapping[str, Any]) -> list[Path]:
    paths = [given.get("checkpoint"), *(given.get("runs") or ())]
    return [p for p in paths if isinstance(p, Path) and (":/" in str(p) or (p / EXPORT).is_file())]
