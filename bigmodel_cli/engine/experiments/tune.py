"""Hyperparameter search with Optuna: resumable, parallel over processes, with pruning of bad trials."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

from pydantic import Field

from bigmodel_cli.core.errors import DivergedError, InputError, InterruptedRun, MachineError
from bigmodel_cli.core.extras import install_line
from bigmodel_cli.core.files.atomic_files import open_own
from bigmodel_cli.core.files.file_lock import try_lock
from bigmodel_cli.core.recipe import Recipe, Section
from bigmodel_cli.core.registry import methods, models, tasks
from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.engine.build.model import build_task
from bigmodel_cli.engine.training.assemble import assemble, execute
from bigmodel_cli.engine.training.run import Event, Hooks


class Range(Section):
    """The range of a field, including both ends; on a logarithmic scale with `log`."""

    low: float
    high: float
    log: bool = Field(False, description="as likely between 0.001 and 0.01 as between 0.01 and 0.1")


Search = dict[tuple[str, str], "Range | list[Any]"]


def read_search(values: Any, source: str) -> Search:
    """Read the ``search:`` section of a recipe: ``section.key: [choices]`` or ``section.key: {low, high, log}``.

    Raises:
        InputError: the section is missing or invalid.
    """
    if not isinstance(values, dict) or not values:
        raise InputError(f"{source}: no search: section", "expected the fields to search", "docs/finetune.md")
    search: Search = {}
    for name, space in values.items():
        section, dot, key = name.partition(".")
        if not dot or section not in Recipe.model_fields:
            raise InputError(f"{source}: search.{name}", "expected section.key, as in --set")
        if isinstance(space, list) and space:
            search[section, key] = space
        elif isinstance(space, dict) and {"low", "high"} <= space.keys() <= {"low", "high", "log"}:
            limits = Range(**space)
            if not limits.low < limits.high or (limits.log and limits.low <= 0):
                raise InputError(f"{source}: search.{name}: {limits.low} to {limits.high}", "expected low < high")
            integers = all(isinstance(space[end], int) for end in ("low", "high"))
            search[section, key] = list(range(space["low"], space["high"] + 1)) if integers else limits
        else:
            raise InputError(f"{source}: search.{name} = {space!r}", "expected a list, or low, high and log")
    return search


def tune(
    layers: Iterable[Layer], search: Search, folder: Path, trials: int, on_event: Callable[[Event], None]
) -> tuple[Recipe, list[dict[str, Any]]]:
    """Run the search until it has `trials` trials, including those of other processes.

    Returns the best recipe and all trials.


    Raises:
        MachineError: Optuna is not installed.
        InputError: a field or value is invalid for the recipe, or every trial failed.
    """
    optuna = _import_optuna()
    layers = list(layers)
    first = resolve([*layers, _recipe_layer({k: _first_value(v) for k, v in search.items()})]).recipe
    metric, mode = selection_metric(first)
    study = _open_study(optuna, folder, mode)

    def objective(trial: Any) -> float:
        # One seed per trial, so that parallel or restarted processes do not draw the same values.
        study.sampler = optuna.samplers.TPESampler(seed=first.train.seed + trial.number)
        chosen = {name: _suggest(trial, name, space) for name, space in search.items()}
        try:
            return _run_trial(optuna, trial, resolve([*layers, _recipe_layer(chosen)]).recipe, metric)
        except InterruptedRun:  # which Optuna does not catch
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            raise

    def log_trial(study: Any, trial: Any) -> None:
        values = {**trial.params, f"val_{metric}": trial.value}
        on_event({"event": "trial", "trial": trial.number, "state": trial.state.name.lower(), **values})

    finished = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    if len(study.get_trials(states=finished)) < trials:
        study.optimize(objective, callbacks=[log_trial, optuna.study.MaxTrialsCallback(trials, states=finished)])
    results = [
        {"trial": t.number, "state": t.state.name.lower(), **t.params, metric: t.value} for t in study.get_trials()
    ]
    if not study.get_trials(states=finished[:1]):
        raise InputError(f"{folder}: every trial diverged or was pruned", "expected one to finish", "other ranges")
    best = {(s, k): v for (s, k), v in ((tuple(n.split(".")), v) for n, v in study.best_params.items())}
    return resolve([*layers, _recipe_layer(best)]).recipe, results


def selection_metric(recipe: Recipe) -> tuple[str, str]:
    """Return the validation metric that selects the best run of the recipe, and "max" or "min"."""
    spec = tasks.get(models.get(recipe.model.name).meta["task"]).meta["spec_type"]
    method_best = methods.get(recipe.start.method).meta.get("best")  # for a method that defines its own task
    return method_best or build_task(recipe, spec.typical()).best


class LogLock:
    """Keeps other processes from writing the log of a search meanwhile; for Optuna's ``lock_obj``.

    The system releases it when a process is killed. Optuna's own, a link beside the log, would stay and be waited for.
    """

    RETRY = 0.01  # seconds

    def __init__(self, log: Path) -> None:
        self.log = log
        self._held: IO[str] | None = None

    def acquire(self) -> bool:
        """Wait until no other process has it."""
        self._held = open_own(self.log)
        while not try_lock(self._held):
            time.sleep(self.RETRY)
        return True

    def release(self) -> None:
        if self._held is not None:
            self._held.close()


def _open_study(optuna: Any, folder: Path, mode: str) -> Any:
    """Open or create the search in `folder`. Other processes may share it.

    Raises:
        InputError: its log is damaged.
        OSError: its log is a link, or cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "trials.log"
    open_own(log).close()
    backend = optuna.storages.journal.JournalFileBackend(str(log), LogLock(log))
    try:
        return optuna.create_study(
            storage=optuna.storages.JournalStorage(backend),
            study_name="bigmodel",
            load_if_exists=True,
            direction="maximize" if mode == "max" else "minimize",
            pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1),
        )
    except (LookupError, ValueError, TypeError, AttributeError, AssertionError) as error:
        what = f"{log}: damaged: {type(error).__name__}: {error}".partition("\n")[0]
        raise InputError(what, "expected the trials of a search", "another --out") from None


def _run_trial(optuna: Any, trial: Any, recipe: Recipe, metric: str) -> float:
    """Train `recipe` and return its best `metric`. A run that is worse than others at the same epoch is pruned.

    Raises:
        optuna.TrialPruned: the run was pruned, or it diverged.
    """

    def report(event: Event) -> None:
        if event["event"] == "epoch" and f"val_{metric}" in event:
            trial.report(event[f"val_{metric}"], event["epoch"])
            if trial.should_prune():
                raise optuna.TrialPruned

    run = assemble(recipe, hooks=Hooks(report))
    try:
        execute(run)
    except DivergedError:
        raise optuna.TrialPruned from None
    if run.progress.best_metric is None:
        raise optuna.TrialPruned
    return run.progress.best_metric


def _import_optuna() -> Any:
    try:
        import optuna
    except ImportError:
        problem = "optuna is not installed"
        raise MachineError(problem, "tune needs the extra tune", install_line("tune")) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _recipe_layer(values: dict[tuple[str, str], Any]) -> Layer:
    sections: dict[str, dict[str, Any]] = {}
    for (section, key), value in values.items():
        sections.setdefault(section, {})[key] = value
    return Layer("search", sections)


def _first_value(space: Range | list[Any]) -> Any:
    return space.low if isinstance(space, Range) else space[0]


def _suggest(trial: Any, name: tuple[str, str], space: Range | list[Any]) -> Any:
    key = ".".join(name)
    if isinstance(space, Range):
        return trial.suggest_float(key, space.low, space.high, log=space.log)
    return trial.suggest_categorical(key, space)
