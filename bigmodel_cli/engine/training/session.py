"""A run from start to end in its folder: lock, train, save, and a status that tells how it ended."""

from __future__ import annotations

import contextlib
import shlex
import signal
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigmodel_cli.core import atomic_files
from bigmodel_cli.core.errors import BigmodelError, DivergedError, InputError, InterruptedRun
from bigmodel_cli.core.recipe import Recipe
from bigmodel_cli.core.strict_yaml import dump_yaml
from bigmodel_cli.engine.build.digest import assert_unchanged, digest
from bigmodel_cli.engine.checkpoint import checkpoint
from bigmodel_cli.engine.checkpoint.async_writer import LocalShard, Writer
from bigmodel_cli.engine.checkpoint.sharded import ShardSpec, split_state
from bigmodel_cli.engine.distributed.process_group import SINGLE_PROCESS, Group, translate_rank_errors
from bigmodel_cli.engine.plan.mfu import utilisation
from bigmodel_cli.engine.training.assemble import assemble
from bigmodel_cli.engine.training.cached_features import cache_features
from bigmodel_cli.engine.training.evaluate import evaluate
from bigmodel_cli.engine.training.linear_probe import solve
from bigmodel_cli.engine.training.loop import fit
from bigmodel_cli.engine.training.profiler import traced
from bigmodel_cli.engine.training.reference_outputs import add_reference_outputs
from bigmodel_cli.engine.training.run import Event, Run
from bigmodel_cli.engine.training.run_folder import RunFolder
from bigmodel_cli.engine.training.sharded_build import own_shard
from bigmodel_cli.engine.training.signals import StopFlag
from bigmodel_cli.models.quantization.nf4 import parameters

UTILISATION_AFTER = 30.0  # seconds: counting and measuring take some tenths, which a short run would feel


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
            "time": self.run.timer.shares(),
            "verdict": self.run.timer.verdict(),
            "frozen_unchanged": len(self.run.frozen.tensors),
            "memory_peak": self.run.placement.memory_peak(),
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
    """Train `recipe` in `folder` to its end; `recorded` is the environment of a run that is done again.

    A new folder is made only once everything is built: bad input leaves nothing behind.
    Every process of `group` calls this; rank 0's `folder` is the one that is written.

    Raises:
        InterruptedRun: a signal came; everything is saved.
        BigmodelError: it could not start, or not go on; ``status.json`` says the same.
    """
    clock = time.perf_counter()
    with (
        StopFlag() as stop,
        translate_rank_errors(),
        _prepared(recipe, folder, recorded, group) as run,
        Writer(folder.path, run.frozen.tensors) as writer,
    ):
        best: dict[str, Any] = {}
        look_at: float = time.perf_counter() + UTILISATION_AFTER

        def told(event: Event) -> None:
            nonlocal best, look_at
            if event["event"] != "step":
                folder.event(event)
            if event.get("best"):
                best = {k: event[k] for k in event if k.startswith("val_")} | {"best_epoch": event["epoch"]}
            emit(event)
            if event["event"] == "step" and time.perf_counter() > look_at:
                look_at = float("inf")
                if found := utilisation(recipe, run.task, run.placement, group.world):
                    told({"event": "utilisation", **found})

        def save(run: Run, best: bool) -> None:
            state = run.state(whole=False)
            if run.parallel.saves_shards and checkpoint.tensor_bytes(state) > recipe.train.shard_above:
                writer.save_shard(_parts(run, state), best)
                return
            state = run.parallel.gather_full(state, group.is_main)
            if group.is_main:
                writer.save(state, best)

        run.emit, run.stop = told, lambda: group.any(stop.requested)
        run.save = save
        run.roll_back = lambda: _roll_back(run, folder, writer)
        run.timer.seconds["start"] += time.perf_counter() - clock
        told(_start(run, folder))
        with assert_unchanged(run.model, run.frozen.tensors):
            through = cache_features(run) and add_reference_outputs(run)
            before = _before(run)
            if not run.adapted.solve:  # which has nothing to save until it is through
                stop.gently()
            trace = traced(run, folder.path / "trace.json") if recipe.train.profile else contextlib.nullcontext()
            with trace:
                through = through and (solve(run) if run.adapted.solve else fit(run))
        with run.timer("saving"):
            writer.flush()
            group.barrier()
        if not through:
            raise _interrupted(max(group.gather(stop.signum or 0)), run, folder)
        best = best or {"best_epoch": run.progress.best_epoch, f"val_{run.task.best[0]}": run.progress.best_metric}
        of_weights = digest(run.parallel.gather_full(dict(run.model.state_dict()), group.is_main))
        outcome = Outcome(folder.path, run, best, time.perf_counter() - clock, of_weights, before)
        folder.event(outcome.to_dict())
        folder.status("done", 0, run.progress.step, str(outcome.best), "")
        return outcome


def _before(run: Run) -> dict[str, Any]:
    """Validation metrics at the start of a fine-tuning; nothing for a run from zero, or one that is resumed."""
    if not run.recipe.start.trained or run.progress.step:
        return {}
    size = run.recipe.train.eval_batch_size
    group = run.parallel.group
    metrics = evaluate(run.eval_model, run.task, run.val, run.placement, size, run.stop, group)
    return {f"val_{k}": v for k, v in (metrics or {}).items()}


@contextlib.contextmanager
def _prepared(recipe: Recipe, folder: RunFolder, recorded: Mapping[str, Any] | None, group: Group) -> Iterator[Run]:
    """The run, built and holding the folder's lock; however it ends, ``status.json`` says so."""
    run: Run | None = None
    if not folder.resume:
        run = assemble(recipe, None, recorded, group=group)  # before the folder exists
    with folder:
        try:
            if run is None:
                state, skipped = _newest(folder, group, own_shard(recipe, group))
                run = assemble(recipe, state, group=group)
                run.notes[:0] = skipped
                folder.rewind(run.progress.epoch)
            else:
                folder.write_text("recipe.yaml", dump_yaml(recipe.to_dict()))
            folder.status("running", None, run.progress.step, None, "")
            folder.path = Path(group.broadcast(str(folder.path)))
            with translate_rank_errors():
                yield run
        except BigmodelError as error:
            step = run.progress.step if run else 0
            last = folder.path / "last.pt"
            if isinstance(error, DivergedError) and last.exists():
                error.hint = f"last good checkpoint {last}; {error.hint}"
            how = "interrupted" if isinstance(error, InterruptedRun) else "failed"
            with contextlib.suppress(BigmodelError):  # on a full disk the first error is the one to tell
                folder.status(how, error.exit_code, step, str(last) if last.exists() else None, error.line)
            raise
        except BrokenPipeError:  # whoever read our output has gone
            folder.status("failed", 128 + signal.SIGPIPE, run.progress.step if run else 0, None, "output pipe closed")
            raise
        except Exception as error:
            with contextlib.suppress(BigmodelError):
                folder.write_text("crash.log", traceback.format_exc())
                error.add_note(f"the traceback is in {folder.path / 'crash.log'}")
                folder.status("failed", 1, run.progress.step if run else 0, None, "a bug in bigmodel: see crash.log")
            raise


def _parts(run: Run, state: dict[str, Any]) -> LocalShard:
    group = run.parallel.group
    plain, mine = split_state(state, run.parallel.local_rows, group.is_main)
    name = group.broadcast(atomic_files.SHARDS_PREFIX + uuid.uuid4().hex[:12])
    return LocalShard(name, run.progress.step, group.rank, group.world, plain, mine, run.recipe.parallel.timeout)


def _newest(folder: RunFolder, group: Group, share: ShardSpec | None) -> tuple[dict[str, Any], list[str]]:
    """The newest valid checkpoint, which rank 0 chooses and every rank reads; and a line for each that was skipped.

    Raises:
        InputError: there is none.
    """
    if not group.is_main:
        chosen = group.broadcast(None)
        if chosen is None:
            raise InputError(f"{folder.path}: no valid checkpoint")
        return checkpoint.load(Path(chosen), share), []
    try:
        newest, state, skipped = checkpoint.newest_valid(folder.path, share)
    except InputError:
        group.broadcast(None)
        raise
    if newest.name == "best.pt" and not skipped:  # a kill came between best.pt and its link: end that save
        atomic_files.link(newest, folder.path / "last.pt")
    group.broadcast(str(newest))
    return state, skipped


def _roll_back(run: Run, folder: RunFolder, writer: Writer) -> bool:
    writer.flush()
    try:
        group = run.parallel.group
        state, _ = _newest(folder, group, own_shard(run.recipe, group))
    except InputError:
        return False
    run.restore(state)
    folder.rewind(run.progress.epoch)
    return True


def _interrupted(signum: int, run: Run, folder: RunFolder) -> InterruptedRun:
    step = run.progress.step
    return InterruptedRun(
        signum,
        f"stopped by signal {signum} at step {step}/{run.total_steps}; saved {folder.path / 'last.pt'}",
        hint=f"bigmodel train --resume --out {shlex.quote(str(folder.path))}",
    )


def _start(run: Run, folder: RunFolder) -> Event:
    return {
        "event": "start",
        "model": run.recipe.model.name,
        "data": run.recipe.data.name,
        "folder": str(folder.path),
        "parameters": parameters(run.model),
        "trainable": sum(p.numel() for p in run.model.parameters() if p.requires_grad),
        "train_size": len(run.batches.source),
        "val_size": len(run.val),
        "step": run.progress.step,
        "total_steps": run.total_steps,
        "epochs": run.recipe.train.epochs,
        "unit": run.task.unit,
        "metric": run.task.best[0],
        "placement": str(run.placement) + (f"; {run.parallel}" if run.parallel.group.world > 1 else ""),
        "notes": run.notes,
    }
