"""Run one training session in its folder: lock, train, save and record the final status."""

from __future__ import annotations

import contextlib
import shlex
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigmodel_cli.core.errors import BigmodelError, CommandEnd, DivergedError, InterruptedRun, as_machine_error
from bigmodel_cli.core.recipe import Recipe
from bigmodel_cli.core.strict_yaml import dump_yaml
from bigmodel_cli.engine.build.digest import assert_unchanged, digest
from bigmodel_cli.engine.checkpoint.async_writer import Writer
from bigmodel_cli.engine.distributed.process_group import SINGLE_PROCESS, Group, translate_rank_errors
from bigmodel_cli.engine.plan.mfu import utilisation
from bigmodel_cli.engine.session.profiler import profiled
from bigmodel_cli.engine.session.run_folder import RunFolder
from bigmodel_cli.engine.session.samples import logged_samples
from bigmodel_cli.engine.session.saving import Checkpoints, newest
from bigmodel_cli.engine.session.signals import StopFlag
from bigmodel_cli.engine.training.assemble import execute, prepare
from bigmodel_cli.engine.training.build_run import Built, build
from bigmodel_cli.engine.training.evaluate import evaluate
from bigmodel_cli.engine.training.loop import is_finished
from bigmodel_cli.engine.training.run import Event, Hooks, Run
from bigmodel_cli.engine.training.sharded_build import own_shard
from bigmodel_cli.models.quantization.nf4 import count_parameters

UTILISATION_AFTER = 30.0  # seconds; measuring takes tenths of a second, too much for a short run


@dataclass(frozen=True)
class Outcome:
    """The result of a finished run. `metrics` are the validation metrics of the best epoch.

    `before` holds the metrics of the initial weights of a fine-tuning run, under the same names.
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
            "stopped_early": self.run.progress.step < self.run.total_steps,
            "digest": self.digest,
            "time": self.run.timer.shares(),
            "verdict": self.run.timer.verdict(),
            "frozen_unchanged": len(self.run.frozen.tensors),
            "memory_peak": self.run.placement.memory_peak(),
            **self.run.gradients.spent(self.run),
            **{f"{name}_before": value for name, value in self.before.items()},
            **self.metrics,
        }


def train(
    recipe: Recipe,
    folder: RunFolder,
    emit: Callable[[Event], None],
    recorded: Mapping[str, Any] | None = None,
    group: Group = SINGLE_PROCESS,
) -> Outcome:
    """Train `recipe` in `folder` to its end. `recorded` is the environment of an earlier run to reproduce.

    A new folder is created only after everything is built, so invalid input leaves no folder behind.
    Every process of `group` calls this. Only rank 0 writes to its `folder`.

    Raises:
        InterruptedRun: a signal stopped the run; its state is saved.
        BigmodelError: the run failed; ``status.json`` has the same message.
    """
    started = time.perf_counter()
    with (
        StopFlag() as stop,
        translate_rank_errors(),
        _build_in(folder, recipe, recorded, group) as built,
        Writer(folder.path, built.draft.frozen.tensors) as writer,
    ):
        log, checkpoints = _EventLog(built, folder, stop.at_closed_pipe(emit)), Checkpoints(folder, writer, group)
        hooks = Hooks(log.add, lambda run: group.any(stop.requested), checkpoints.save, checkpoints.roll_back)
        built.draft.timer.seconds["start"] += time.perf_counter() - started
        begun_finished = folder.resume and is_finished(built.draft) and not built.draft.adapted.solve
        if begun_finished:
            built.draft.notes.append(_already_finished(built.draft))
        log.add(_start_event(built.draft, folder))
        with assert_unchanged(built.draft.model, built.draft.frozen.tensors):
            run = prepare(built, hooks)
            before = _initial_metrics(run)
            if not run.adapted.solve:  # solving has nothing to save until it finishes
                stop.defer()
            with profiled(run, folder.path / "trace.json") as after_step:
                finished = execute(run, after_step)
        if finished and not begun_finished and run.progress.step < run.total_steps:
            log.add({"event": "note", "message": _stopped_early(run)})
        with run.timer("saving"):
            writer.flush()
            group.barrier()
        if not finished:
            raise _interrupted(max(group.gather(stop.signum or 0)), run, folder)
        weights_digest = digest(run.parallel.gather_full(dict(run.model.state_dict()), group.is_main))
        seconds = time.perf_counter() - started
        outcome = Outcome(folder.path, run, log.best_metrics(run), seconds, weights_digest, before)
        folder.event(outcome.to_dict())
        folder.status("done", 0, run.progress.step, str(outcome.best), "")
        return outcome


class _EventLog:
    """Passes the events of a run to its folder and to `emit`."""

    def __init__(self, built: Built, folder: RunFolder, emit: Callable[[Event], None]) -> None:
        self.run, self.folder, self.emit = built.draft, folder, emit
        self._best: dict[str, Any] = {}
        # With cached features only the head runs, so utilisation of the whole network is meaningless.
        wait = float("inf") if built.caches_features else UTILISATION_AFTER
        self._utilisation_at = time.perf_counter() + wait

    def add(self, event: Event) -> None:
        if event["event"] != "step":
            self.folder.event(event)
        if event.get("best"):
            self._best = {k: event[k] for k in event if k.startswith("val_")} | {"best_epoch": event["epoch"]}
        self.emit(event)
        if event["event"] == "epoch" and "best" in event and self.run.parallel.group.world == 1:
            self.folder.loggers.samples(lambda: logged_samples(self.run))
        if event["event"] == "step" and time.perf_counter() > self._utilisation_at:
            self._utilisation_at = float("inf")
            run = self.run
            if measured := utilisation(run.recipe, run.task, run.placement, run.parallel.group.world):
                self.add({"event": "utilisation", **measured})

    def best_metrics(self, run: Run) -> dict[str, Any]:
        """Return the metrics of the best epoch. If it came before a resume, only the selection metric is known."""
        name = f"val_{run.task.best[0]}"
        return self._best or {"best_epoch": run.progress.best_epoch, name: run.progress.best_metric}


def _initial_metrics(run: Run) -> dict[str, Any]:
    """Return the validation metrics before fine-tuning; empty for training from scratch and for a resumed run.

    Also where the head is solved for: one at zero has nothing to tell, and a pass over a large split takes its time.
    """
    solved = run.adapted.solve is not None or run.adapted.first_head is not None
    if solved or not run.recipe.start.trained or run.progress.step:
        return {}
    size = run.recipe.train.eval_batch_size
    group = run.parallel.group
    metrics = evaluate(run.eval_model, run.task, run.val, run.placement, size, run.should_stop, group)
    return {f"val_{k}": v for k, v in (metrics or {}).items()}


@contextlib.contextmanager
def _build_in(folder: RunFolder, recipe: Recipe, recorded: Mapping[str, Any] | None, group: Group) -> Iterator[Built]:
    """Build the run and hold the folder's lock. On any error, record it in ``status.json``."""
    built: Built | None = None
    if not folder.resume:
        built = build(recipe, None, recorded, group=group)  # before the folder is created
    with folder:
        try:
            if built is None:
                state, skipped = newest(folder, group, own_shard(recipe, group))
                built = build(recipe, state, group=group, notes=skipped)
                folder.rewind(built.draft.progress.epoch)
            else:
                folder.write_text("recipe.yaml", dump_yaml(recipe.to_dict()))
            folder.status("running", None, _step(built), None, "")
            folder.path = Path(group.broadcast(str(folder.path)))
            with translate_rank_errors():
                yield built
        except CommandEnd as error:
            last = folder.path / "last.pt"
            if isinstance(error, DivergedError) and last.exists():
                error.hint = f"last good checkpoint {last}; {error.hint}"
            status = "interrupted" if isinstance(error, InterruptedRun) else "failed"
            with contextlib.suppress(BigmodelError):  # on a full disk, report the first error
                folder.status(status, error.exit_code, _step(built), str(last) if last.exists() else None, error.line)
            raise
        except Exception as error:
            if (known := as_machine_error(error)) is not None:
                with contextlib.suppress(BigmodelError):
                    folder.status("failed", known.exit_code, _step(built), None, known.line)
                raise
            with contextlib.suppress(BigmodelError):
                folder.write_text("crash.log", traceback.format_exc())
                error.add_note(f"the traceback is in {folder.path / 'crash.log'}")
                folder.status("failed", 1, _step(built), None, "a bug in bigmodel: see crash.log")
            raise
        except BaseException as end:  # SystemExit and the like: however it ends, the status does not stay "running"
            code = end.code if isinstance(end, SystemExit) and isinstance(end.code, int) else 1
            with contextlib.suppress(BigmodelError):
                folder.status("failed", code, _step(built), None, f"ended by {type(end).__name__}")
            raise


def _step(built: Built | None) -> int:
    """Return the current step. The build and the run share one progress."""
    return built.draft.progress.step if built else 0


def _already_finished(run: Run) -> str:
    done, train = run.progress, run.recipe.train
    if done.step < run.total_steps:
        hint = (
            f"no better val {_metric(run)} in train.patience = {train.patience} epochs; a larger patience continues it"
        )
        return f"this run has stopped early at step {done.step} of {run.total_steps}: {hint}"
    more = "a larger --max-steps" if train.max_steps == done.step else f"--epochs over {train.epochs}"
    return f"done already: all {run.total_steps} steps are trained, and nothing is left to do; {more} continues it"


def _stopped_early(run: Run) -> str:
    done, patience = run.progress, run.recipe.train.patience
    ago = f"{done.epoch - done.best_epoch} epochs ago (train.patience = {patience})"
    best = f"the best val {_metric(run)} was in epoch {done.best_epoch}, {ago}"
    return f"stopped early after epoch {done.epoch}, step {done.step} of {run.total_steps}: {best}"


def _metric(run: Run) -> str:
    return run.task.best[0].replace("_", " ")


def _interrupted(signum: int, run: Run, folder: RunFolder) -> InterruptedRun:
    step = run.progress.step
    return InterruptedRun(
        signum,
        f"stopped by signal {signum} at step {step}/{run.total_steps}; saved {folder.path / 'last.pt'}",
        hint=f"bigmodel train --resume --out {shlex.quote(str(folder.path))}",
    )


def _start_event(run: Run, folder: RunFolder) -> Event:
    return {
        "event": "start",
        "model": run.recipe.model.name,
        "data": run.recipe.data.shown,
        "folder": str(folder.path),
        "parameters": count_parameters(run.model),
        "trainable": sum(p.numel() for p in run.model.parameters() if p.requires_grad),
        "train_size": len(run.batches.source),
        "val_size": len(run.val),
        "step": run.progress.step,
        "total_steps": run.total_steps,
        "epochs": run.recipe.train.epochs,
        "unit": run.task.unit,
        "metric": run.task.best[0],
        "placement": str(run.placement) + (f"; {run.parallel}" if run.parallel.group.world > 1 else ""),
        "fingerprint": run.meta.get("data", {}).get("fingerprint"),
        "environment": run.environment(),
        "notes": run.notes,
    }
