"""What a run will take, measured before it starts: layers, one real step, one real evaluation, one real save."""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

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
    """Build the run of `recipe`, take some of its steps on a batch of train and of val, and write one checkpoint.

    `folder` is where the run would be: its disk is looked at, and nothing is left on it.
    """
    built = build(recipe, measure=False)
    whole = built.draft
    with init_on_meta():
        table, flops = layers(build_model(recipe, whole.task.spec), whole.task)
    run, share = _on_a_batch(built)
    before_steps = _solve(run) + run.timer.seconds["features"]
    step_seconds, train_loss = _steps(run)
    clock = time.perf_counter()
    metrics = evaluate(run.eval_model, run.task, run.val, run.placement, recipe.train.eval_batch_size)
    val_seconds = (time.perf_counter() - clock) * len(whole.val) / len(run.val)
    here = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.is_dir())
    save_seconds, size = _save(run, here)
    epochs = max(-(-run.total_steps // whole.batches.steps_per_epoch), 1)
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
        disk_needed=3 * size,  # last, best, and the one being written
        disk_free=shutil.disk_usage(here).free,
        memory_peak=run.placement.memory_peak(),
        estimated_seconds=before_steps / share + steps,
    )


def _on_a_batch(built: Built) -> tuple[Run, float]:
    """The run on one batch of train and one of val alone, and which share of all samples that is.

    What is computed once for each sample, such as features, is then computed for these.
    """
    draft, batches = built.draft, built.draft.batches
    train, val = (_evenly(source, batches.batch_size) for source in (batches.source, draft.val))
    labels = None if batches.balance_labels is None else batches.balance_labels[train.indices]
    draft = replace(draft, batches=replace(batches, source=train, balance_labels=labels), val=val)
    share = (len(train) + len(val)) / (len(built.draft.batches.source) + len(built.draft.val))
    return prepare(replace(built, draft=draft)), share


def _evenly(source: Source, count: int) -> Subset:
    """`count` samples from all over `source`, which may be in order."""
    count = min(count, len(source))
    return Subset(source, torch.arange(count) * len(source) // count)


def _solve(run: Run) -> float:
    """Seconds that a run takes which solves for its weights; nothing for one that takes steps."""
    clock = time.perf_counter()
    if run.total_steps == 0:
        execute(run)
    return time.perf_counter() - clock


def _steps(run: Run) -> tuple[float, float]:
    """Seconds of a step, and the mean loss of the first one; of a run without steps nothing, and its loss on val."""
    if run.total_steps == 0:
        return 0.0, run.progress.best_loss
    raw = next(run.batches.steps(0))
    run.train_mode()
    taken = train_step(run, raw)
    loss = taken.loss.item() / taken.count
    clock = time.perf_counter()
    train_step(run, raw).loss.item()  # the first one paid for warming up
    return time.perf_counter() - clock, loss


def _save(run: Run, folder: Path) -> tuple[float, int]:
    """Seconds of a save in `folder`, and the bytes of the checkpoint, which is gone again."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".preflight-") as scratch:
        file = Path(scratch) / "last.pt"
        clock = time.perf_counter()
        checkpoint.save(file, run.state())
        return time.perf_counter() - clock, file.stat().st_size
