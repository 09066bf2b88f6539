"""What a run will take, measured before it starts: layers, one real step, one real evaluation, one real save."""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bigmodel_cli.data.batches import in_order
from bigmodel_cli.engine.build.model import build_model
from bigmodel_cli.engine.checkpoint import checkpoint
from bigmodel_cli.engine.plan.flops import Layer, layers
from bigmodel_cli.engine.training.evaluate import evaluate
from bigmodel_cli.engine.training.loop import train_step
from bigmodel_cli.engine.training.run import Run
from bigmodel_cli.models.layers.meta_init import init_on_meta


@dataclass(frozen=True)
class DryRun:
    """Times in seconds, sizes in bytes."""

    layers: list[Layer]
    parameters: int
    flops: int
    placement: str
    steps: int
    step_seconds: float
    train_loss: float
    val_seconds: float
    val_metrics: dict[str, float]
    save_seconds: float
    checkpoint_bytes: int
    disk_needed: int
    disk_free: int
    memory_peak: int
    estimated_seconds: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure(run: Run, folder: Path) -> DryRun:
    """Run one real train and one real val batch and write one checkpoint; `run` is spent afterwards.

    `folder` is where the run would be: its disk is looked at, and nothing is left on it.
    """
    with init_on_meta():
        table, flops = layers(build_model(run.recipe, run.task.spec), run.task)
    raw = next(run.batches.steps(0))
    run.train_mode()
    taken = train_step(run, raw)
    train_loss = taken.loss.item() / taken.count
    clock = time.perf_counter()
    train_step(run, raw).loss.item()  # the first one paid for warming up
    step_seconds = time.perf_counter() - clock
    val_batch = next(in_order(run.val, min(run.recipe.train.eval_batch_size, run.recipe.train.batch_size)))
    clock = time.perf_counter()
    metrics = evaluate(run.eval_model, run.task, _One(val_batch), run.placement, run.recipe.train.eval_batch_size)
    val_seconds = (time.perf_counter() - clock) * len(run.val) / len(val_batch["index"])
    here = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.is_dir())
    with tempfile.TemporaryDirectory(dir=here, prefix=".preflight-") as scratch:
        clock = time.perf_counter()
        checkpoint.save(Path(scratch) / "last.pt", run.state())
        save_seconds = time.perf_counter() - clock
        size = (Path(scratch) / "last.pt").stat().st_size
    epochs = -(-run.total_steps // run.batches.steps_per_epoch)
    return DryRun(
        layers=table,
        parameters=sum(p.numel() for p in run.model.parameters()),
        flops=flops,
        placement=str(run.placement),
        steps=run.total_steps,
        step_seconds=step_seconds,
        train_loss=train_loss,
        val_seconds=val_seconds,
        val_metrics=metrics or {},
        save_seconds=save_seconds,
        checkpoint_bytes=size,
        disk_needed=3 * size,  # last, best, and the one being written
        disk_free=shutil.disk_usage(here).free,
        memory_peak=run.placement.memory_peak(),
        estimated_seconds=run.total_steps * step_seconds + epochs * (val_seconds + save_seconds),
    )


@dataclass(frozen=True)
class _One:
    """A source that is one batch already gathered."""

    batch: dict[str, torch.Tensor]

    def __len__(self) -> int:
        return len(self.batch["index"])

    def gather(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        return {k: v[indices] for k, v in self.batch.items()}

    def name(self, index: int) -> str:
        return f"batch[{index}]"
