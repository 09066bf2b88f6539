"""A run from start to end in its folder: lock, train, save, and a status that tells how it ended."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigmodel_cli.core.errors import BigmodelError, DivergedError, InputError, InterruptedRun
from bigmodel_cli.core.recipe import Recipe
from bigmodel_cli.core.strict_yaml import dump_yaml
from bigmodel_cli.data.picture_cache import listening
from bigmodel_cli.engine import checkpoint
from bigmodel_cli.engine.assemble import assemble
from bigmodel_cli.engine.evaluate import evaluate
from bigmodel_cli.engine.features import keep_features
from bigmodel_cli.engine.folder import RunFolder
from bigmodel_cli.engine.loop import fit
from bigmodel_cli.engine.run import Event, Run
from bigmodel_cli.engine.signals import StopFlag
from bigmodel_cli.engine.solve import solve
from bigmodel_cli.engine.start import digest, unchanged


@dataclass(frozen=True)
class Outcome:
    """What a finished run left behind. `metrics` are those of the best epoch on val.

    `before` are those of the weights that a fine-tuning started from, under the same names.
    """

    folder: Path
    run: Run
    metrics: dict[str, Any]
    seconds: float
    digest: str
    before: dict[str, Any]

    @property
    def best(self) -> Path:
        return self.folder / "best.pt"

    def to_dict(self) -> dict[str, Any]:
        return {
            "event": "end",
            "folder": str(self.folder),
            "checkpoint": str(self.best),
            "seconds": self.seconds,
            "steps": self.run.progress.step,
            "digest": self.digest,
            "time": self.run.watch.shares(),
            "verdict": self.run.watch.verdict(),
            "frozen_unchanged": len(self.run.frozen.tensors),
            "memory_peak": self.run.placement.memory_peak(),
            **{f"{name}_before": value for name, value in self.before.items()},
            **self.metrics,
        }


def train(
    recipe: Recipe, folder: RunFolder, emit: Callable[[Event], None], recorded: Mapping[str, Any] | None = None
) -> Outcome:
    """Train `recipe` in `folder` to its end; `recorded` is the environment of a run that is done again.

    A new folder is made only once everything is built: bad input leaves nothing behind.

    Raises:
        InterruptedRun: a signal came; everything is saved.
        BigmodelError: it could not start, or not go on; ``status.json`` says the same.
    """
    clock = time.perf_counter()
    with StopFlag() as stop, listening(lambda *_: _stop_decoding(stop)), _prepared(recipe, folder, recorded) as run:
        best: dict[str, Any] = {}

        def told(event: Event) -> None:
            nonlocal best
            if event["event"] != "step":
                folder.event(event)
            if event.get("best"):
                best = {k: event[k] for k in event if k.startswith("val_")} | {"best_epoch": event["epoch"]}
            emit(event)

        run.emit, run.stop, run.save = told, lambda: stop.requested, _saver(folder)
        run.roll_back = lambda: _roll_back(run, folder)
        run.watch.seconds["start"] += time.perf_counter() - clock
        told(_start(run, folder))
        with unchanged(run.model, run.frozen.tensors):
            through = keep_features(run)
            before = _before(run)
            through = through and (solve(run) if run.adapted.solve else fit(run))
        if not through:
            _interrupted(stop, run, folder)
        best = best or {"best_epoch": run.progress.best_epoch, f"val_{run.task.best[0]}": run.progress.best_metric}
        outcome = Outcome(folder.path, run, best, time.perf_counter() - clock, digest(run.model), before)
        folder.event(outcome.to_dict())
        folder.status("done", 0, run.progress.step, str(outcome.best), "")
        return outcome


def _stop_decoding(stop: StopFlag) -> None:
    """A signal ends the decoding of the pictures too, which may take minutes before the first step."""
    if stop.signum is not None:
        raise InterruptedRun(stop.signum, f"stopped by signal {stop.signum} while pictures were decoded, before step 1")


def _before(run: Run) -> dict[str, Any]:
    """Validation metrics at the start of a fine-tuning; nothing for a run from zero, or one that is resumed."""
    if not run.recipe.start.trained or run.progress.step:
        return {}
    size = run.recipe.train.eval_batch_size
    metrics = evaluate(run.eval_model, run.task, run.val, run.placement, size, run.stop)
    return {f"val_{k}": v for k, v in (metrics or {}).items()}


@contextmanager
def _prepared(recipe: Recipe, folder: RunFolder, recorded: Mapping[str, Any] | None) -> Iterator[Run]:
    """The run, built and holding the folder's lock; however it ends, ``status.json`` says so."""
    run: Run | None = None
    if not folder.resume:
        run = assemble(recipe, None, recorded)  # before the folder exists
    with folder:
        try:
            if run is None:
                _, state, skipped = checkpoint.fallback(folder.path)
                run = assemble(recipe, state)
                run.notes[:0] = skipped
                folder.rewind(run.progress.step)
            else:
                folder.write_text("recipe.yaml", dump_yaml(recipe.to_dict()))
            folder.status("running", None, run.progress.step, None, "")
            yield run
        except BigmodelError as error:
            step = run.progress.step if run else 0
            last = folder.path / "last.pt"
            if isinstance(error, DivergedError) and last.exists():
                error.hint = f"last good checkpoint {last}; {error.hint}"
            folder.status("failed", error.exit_code, step, str(last) if last.exists() else None, error.line)
            raise
        except Exception as error:
            folder.write_text("crash.log", traceback.format_exc())
            error.add_note(f"the traceback is in {folder.path / 'crash.log'}")
            folder.status("failed", 1, run.progress.step if run else 0, None, "a bug in bigmodel: see crash.log")
            raise


def _saver(folder: RunFolder) -> Callable[[Run, bool], None]:
    def save(run: Run, best: bool) -> None:
        last = folder.path / "last.pt"
        checkpoint.save(last, run.state())
        if best:
            checkpoint.link(last, folder.path / "best.pt")

    return save


def _roll_back(run: Run, folder: RunFolder) -> bool:
    try:
        _, state, _ = checkpoint.fallback(folder.path)
    except InputError:
        return False
    run.restore(state)
    folder.rewind(run.progress.step)
    return True


def _interrupted(stop: StopFlag, run: Run, folder: RunFolder) -> None:
    signum = stop.signum or 0
    step = run.progress.step
    raise InterruptedRun(
        signum,
        f"stopped by signal {signum} at step {step}/{run.total_steps}; saved {folder.path / 'last.pt'}",
        hint=f"bigmodel train --resume --out {folder.path}",
    )


def _start(run: Run, folder: RunFolder) -> Event:
    parameters = list(run.model.parameters())
    return {
        "event": "start",
        "model": run.recipe.model.name,
        "data": run.recipe.data.name,
        "folder": str(folder.path),
        "parameters": sum(p.numel() for p in parameters),
        "trainable": sum(p.numel() for p in parameters if p.requires_grad),
        "train_size": len(run.batches.source),
        "val_size": len(run.val),
        "step": run.progress.step,
        "total_steps": run.total_steps,
        "epochs": run.recipe.train.epochs,
        "unit": run.task.unit,
        "metric": run.task.best[0],
        "placement": str(run.placement),
        "notes": run.notes,
    }
