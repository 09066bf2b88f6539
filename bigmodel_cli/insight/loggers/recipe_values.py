"""What trackers show beside a run's curves: its curves' names, and its recipe as flat values."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bigmodel_cli.core.addresses import scrub
from bigmodel_cli.core.files.atomic_files import write_text
from bigmodel_cli.core.strict_yaml import read_yaml

NO_CURVES = {"event", "epoch", "step", "best"}


def curves(event: Mapping[str, Any]) -> dict[str, float]:
    """The figures of an epoch by the name of their curve: ``val_accuracy`` is ``val/accuracy``."""
    numbers = {name: value for name, value in event.items() if isinstance(value, (int, float))}
    return {name.replace("_", "/", 1): float(v) for name, v in numbers.items() if name not in NO_CURVES}


def recipe_values(folder: Path) -> dict[str, Any]:
    """The values of the run's recipe by their keys, ``optimizer.lr`` and so on, without credentials."""
    file = folder / "recipe.yaml"
    flat: dict[str, Any] = {}

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                add(f"{prefix}.{key}" if prefix else str(key), inner)
        else:
            flat[prefix] = scrub(value) if isinstance(value, str) else value

    add("", read_yaml(file).values if file.is_file() else {})
    return flat


def kept_id(file: Path) -> str:
    """The identifier in `file`, or a new one that is written there: a resumed run has the same."""
    if file.is_file() and not file.is_symlink():
        found = file.read_text(encoding="utf-8").strip()
        if found.isalnum() and len(found) <= 64:
            return found
    made = secrets.token_hex(8)
    write_text(file, made + "\n")
    return made
