"""Measure the cost of a run before it starts: its layers, a real step, a real evaluation and a real save."""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bigmodel_cli.core.files import drafts
from bigmodel_cli.core.recipe import Recipe
from bigmodel_cli.core.types import Source
from bigmodel_cli.data.subset import Subset
from bigmodel_cli.engine.build.model import build_model
from bigmodel_cli.engine.checkpoint import checkpoint
from bigmodel_cli.engine.plan.flops import Layer, layers
from bigmodel_cli.engine.training.assemble import execute, prepare
from bigmodel_cli.engine.training.build_run import Built, build
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


def measure(recipe: Recipe, folder: Path) -> DryRun:
    """Build the run of `recipe`, and time steps, an evaluation and a save on one batch of each split.

    `folder` is the run's folder. Its disk is measured, and no files are left on it.
    """
    built = build(recipe, measure=False)
    draft = built.draft
    with init_on_meta():
        table, flops = layers(build_model(recipe, draft.task.spec), draft.task)
    run, fraction = _restrict_to_batch(built)
    before_steps = _time_solve(run) + run.timer.seconds["features"]
    step_seconds, train_loss = _time_steps(run)
    started = time.perf_counter()
    metrics = evaluate(run.eval_model, run.task, run.val, run.placement, recipe.train.eval_batch_size)
    val_seconds = (time.perf_counter() - started) * len(draft.val) / len(run.val)
    existing = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.is_dir())
    save_seconds, size = _time_save(run, existing)
    epochs = max(-(-run.total_steps // draft.batches.steps_per_epoch), 1)
    steps = run.total_steps * step_seconds + epochs * (val_seconds + save_seconds)
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
        disk_needed=3 * size,  # last.pt, best.pt and the one being written
        disk_free=shutil.disk_usage(existing).free,
        memory_peak=run.placement.memory_peak(),
        estimated_seconds=before_steps / fraction + steps,
    )


def _restrict_to_batch(built: Built) -> tuple[Run, float]:
    """Restrict the run to one batch of each split, and return it with the fraction of all samples that it uses.

    Per-sample caches, such as features, are then computed for these samples only.
    """
    draft, batches = built.draft, built.draft.batches
    train, val = (_subsample(source, batches.batch_size) for source in (batches.source, draft.val))
    labels = None if batches.balance_labels is None else batches.balance_labels[train.indices]
    draft = replace(draft, batches=replace(batches, source=train, balance_labels=labels), val=val)
    fraction = (len(train) + len(val)) / (len(built.draft.batches.source) + len(built.draft.val))
    return prepare(replace(built, draft=draft)), fraction


def _subsample(source: Source, count: int) -> Subset:
    """Return `count` evenly spaced samples of `source`, which may be sorted."""
    count = min(count, len(source))
    return Subset(source, torch.arange(count) * len(source) // count)


def _time_solve(run: Run) -> float:
    """Return the seconds to solve for the head; about zero for a run that takes steps."""
    started = time.perf_counter()
    if run.total_steps == 0:
        execute(run)
    return time.perf_counter() - started


def _time_steps(run: Run) -> tuple[float, float]:
    """Return the seconds per step and the mean loss of the first step.

    For a run without steps: zero and its validation loss.
    """
    if run.total_steps == 0:
        return 0.0, run.progress.best_loss
    raw = next(run.batches.steps(0))
    run.train_mode()
    result = train_step(run, raw)
    loss = result.loss.item() / result.count
    started = time.perf_counter()
    train_step(run, raw).loss.item()  # timed on the second step, after warm-up
    return time.perf_counter() - started, loss


def _time_save(run: Run, folder: Path) -> tuple[float, int]:
    """Save a temporary checkpoint in `folder`. Return the seconds and its size in bytes."""
    drafts.remove_leftovers(folder, lambda path: False)
    with drafts.draft(folder / "preflight") as scratch:
        file = scratch / "last.pt"
        started = time.perf_counter()
        checkpoint.save(file, run.state())
        return time.perf_counter() - started, file.stat().st_size
