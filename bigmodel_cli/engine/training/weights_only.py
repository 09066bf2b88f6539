"""Checkpoints made from others: weights and metadata, nothing to resume."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from bigmodel_cli.engine.checkpoint import checkpoint
from bigmodel_cli.engine.training.provenance import provenance


def save_weights(
    path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], progress: Mapping[str, Any]
) -> None:
    """Write an ordinary checkpoint of `tensors` without optimizer state; folders above `path` are created.

    Raises:
        MachineError: the disk is full or cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    state: dict[str, Any] = {
        "format": checkpoint.FORMAT, "version": checkpoint.VERSION, "model": dict(tensors), "model_ema": None,
        "optimizer": {}, "scheduler": None, "scaler": None, "progress": dict(progress), "rng": {},
        "meta": {**meta, "origin": provenance(), "created": time.time()},
    }  # fmt: skip
    checkpoint.save(path, state)
