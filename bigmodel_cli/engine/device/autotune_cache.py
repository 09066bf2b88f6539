"""The cache of autotuned placements: ``placement.json`` in the cache folder, by workload and machine."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
from typing import Any

import torch

import bigmodel_cli
from bigmodel_cli.core import atomic_files
from bigmodel_cli.core.errors import MachineError
from bigmodel_cli.core.recipe import cache_root
from bigmodel_cli.core.types import Batch
from bigmodel_cli.engine.device.hardware import cpu_info
from bigmodel_cli.engine.device.placement import Placement, device_name

CACHE_ENTRIES = 500


def cache_key(placement: Placement, raw_batch: Batch, workload: Any) -> str:
    """The key of a choice: the machine, the versions, the shapes of the batch, and what `workload` names."""
    shapes = {k: [str(v.dtype), *v.shape] for k, v in raw_batch.items()}
    machine = [device_name(placement.device), cpu_info()[0] or platform.machine(), os.cpu_count(), placement.choices()]
    facts = [machine, str(torch.__version__), bigmodel_cli.__version__, shapes, workload]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def _read_cache() -> dict[str, Any]:
    try:
        found = json.loads((cache_root() / "placement.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # missing or damaged: measuring again costs seconds
        return {}
    return found if isinstance(found, dict) else {}


def cached_choice(key: str) -> dict[str, Any] | None:
    """The choice stored under `key`, with the reason ``why``; None where there is none or it is malformed."""
    saved = _read_cache().get(key)
    kinds = {"precision": str, "channels_last": bool, "compile": bool, "threads": int, "small_maps": bool, "why": str}
    if not isinstance(saved, dict) or any(type(saved.get(k)) is not kind for k, kind in kinds.items()):
        return None
    return saved if saved["precision"] in ("fp32", "bf16") and 0 < saved["threads"] <= 4096 else None


def store_choice(key: str, choice: dict[str, Any]) -> None:
    """Add `choice` to the cache; the oldest of more than CACHE_ENTRIES are dropped."""
    entries = {**_read_cache(), key: choice}
    path = cache_root() / "placement.json"
    text = json.dumps(dict(list(entries.items())[-CACHE_ENTRIES:]), indent=1)
    with contextlib.suppress(OSError, MachineError):  # without a cache the next run measures again
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_files.replace(path, lambda draft: draft.write_text(text, encoding="utf-8"), lambda: len(text))
