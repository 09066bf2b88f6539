"""Forks children that save checkpoints without end through the run's own writer, to be killed at random moments."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

from bigmodel_cli.engine.checkpoint import checkpoint
from bigmodel_cli.engine.checkpoint.async_writer import Writer

SIZE = 1_000_000


def state(step: int) -> dict[str, Any]:
    """A checkpoint of `step`: two tensors of 4 MB that follow from it."""
    meta = {
        "arch": "mlp", "arch_args": {}, "task": "image_classification", "classes": ["a"], "input": {}, "data": {},
        "recipe": {}, "env": {}, "created": float(step),
    }  # fmt: skip
    return {
        "format": "bigmodel.checkpoint", "version": 1, "model": {"w": torch.full((SIZE,), float(step))},
        "model_ema": None, "optimizer": {"state": {0: torch.arange(SIZE, dtype=torch.float32) + step}},
        "scheduler": None, "scaler": None, "progress": {"step": step}, "rng": {}, "meta": meta,
    }  # fmt: skip


def child(folder: Path, report: int, broken: bool) -> None:
    if broken:
        checkpoint.save = lambda path, state, abandoned=None: torch.save(state, path)  # type: ignore[assignment]
    writer, step = Writer(folder), 0
    live = state(0)  # the training state, which goes on changing while it is written
    while True:
        step += 1
        live["model"]["w"].fill_(step)
        live["optimizer"]["state"][0].add_(1)
        live["progress"], live["meta"]["created"] = {"step": step}, float(step)
        os.write(report, f"begin {step}\n".encode())
        writer.save(live, best=step % 3 == 0)
        live["model"]["w"].fill_(-1)
        writer.flush()
        os.write(report, f"saved {step}\n".encode())


def main() -> None:
    broken = sys.argv[1] == "broken"
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            child(Path(line.strip()), 1, broken)
        os.write(1, f"pid {pid}\n".encode())
        os.waitpid(pid, 0)
        os.write(1, b"dead\n")


if __name__ == "__main__":
    main()
