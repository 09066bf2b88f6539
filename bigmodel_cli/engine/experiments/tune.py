"""A search over recipe fields with Optuna: resumable, in several processes at once, bad trials cut short."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pydantic import Field

from bigmodel_cli.core.errors import DivergedError, InputError, MachineError
from bigmodel_cli.core.recipe import Recipe, Section
from bigmodel_cli.core.registry import methods, models, tasks
from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.engine.build.model import build_task
from bigmodel_cli.engine.training.assemble import assemble, execute
from bigmodel_cli.engine.training.run import Event, Hooks


class Range(Section):
    """The values that a field may take: between two, both included; on a logarithmic scale with `log`."""

    low: float
    high: float
    log: bool = Field(False, description="as likely between 0.001 and 0.01 as between 0.01 and 0.1")


Search = dict[tuple[str, str], "Range | list[Any]"]


def read_search(values: Any, source: str) -> Search:
    """The ``search:`` section of a recipe: ``section.key: [choices]`` or ``section.key: {low, high, log}``.

    Raises:
        InputError: it is missing, or says something else.
    """
    if not isinstance(values, dict) or not values:
        raise InputError(f"{source}: no search: section", "expected the fields to search", "docs/finetune.md")
    found: Search = {}
    for name, space in values.items():
        section, dot, key = name.partition(".")
        if not dot or section not in Recipe.model_fields:
            raise InputError(f"{source}: search.{name}", "expected section.key, as in --set")
        if isinstance(space, list) and space:
            found[section, key] = space
        elif isinstance(space, dict) and {"low", "high"} <= space.keys() <= {"low", "high", "log"}:
            limits = Range(**space)
            if not limits.low < limits.high or (limits.log and limits.low <= 0):
                raise InputError(f"{source}: search.{name}: {limits.low} to {limits.high}", "expected low < high")
            whole = all(isinstance(space[end], int) for end in ("low", "high"))
            found[section, key] = list(range(space["low"], space["high"] + 1)) if whole else limits
        else:
            raise InputError(f"{source}: search.{name} = {space!r}", "expected a list, or low, high and log")
    return found


def tune(
    layers: Iterable[Layer], search: Search, folder: Path, trials: int, on_event: Callable[[Event], None]
) -> tuple[Recipe, list[dict[str, Any]]]:
    """The best recipe, and every trial, after `trials` of them in all, those of other processes among them.

    Raises:
        MachineError: Optuna is not installed.
        InputError: a field or value is none of the recipe's, or every trial failed.
    """
    optuna = _optuna()
    layers = list(layers)
    first = resolve([*layers, _layer({k: _example(v) for k, v in search.items()})]).recipe
    metric, mode = chosen_by(first)
    study = _study(optuna, folder, mode)

    def objective(trial: Any) -> float:
        # A seed a trial: two processes that ask at the same moment, and one started again, get other answers.
        study.sampler = optuna.samplers.TPESampler(seed=first.train.seed + trial.number)
        chosen = {name: _suggest(trial, name, space) for name, space in search.items()}
        return _try(optuna, trial, resolve([*layers, _layer(chosen)]).recipe, metric)

    def after(study: Any, trial: Any) -> None:
        figures = {**trial.params, f"val_{metric}": trial.value}
        on_event({"event": "trial", "trial": trial.number, "state": trial.state.name.lower(), **figures})

    ended = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    if len(study.get_trials(states=ended)) < trials:
        study.optimize(objective, callbacks=[after, optuna.study.MaxTrialsCallback(trials, states=ended)])
    done = [{"trial": t.number, "state": t.state.name.lower(), **t.params, metric: t.value} for t in study.get_trials()]
    if not study.get_trials(states=ended[:1]):
        raise InputError(f"{folder}: every trial diverged or was cut short", "expected one to end", "other ranges")
    best = {(s, k): v for (s, k), v in ((tuple(n.split(".")), v) for n, v in study.best_params.items())}
    return resolve([*layers, _layer(best)]).recipe, done


def chosen_by(recipe: Recipe) -> tuple[str, str]:
    """The validation metric that the recipe's runs are compared by, and "max" or "min"."""
    spec = tasks.get(models.get(recipe.model.name).meta["task"]).meta["spec_type"]
    own = methods.get(recipe.start.method).meta.get("best")  # of a method with a task of its own
    return own or build_task(recipe, spec.typical()).best


def _study(optuna: Any, folder: Path, mode: str) -> Any:
    """The search in `folder`, which other processes may share; a new one where there is none."""
    folder.mkdir(parents=True, exist_ok=True)
    backend = optuna.storages.journal.JournalFileBackend(str(folder / "trials.log"))
    return optuna.create_study(
        storage=optuna.storages.JournalStorage(backend),
        study_name="bigmodel",
        load_if_exists=True,
        direction="maximize" if mode == "max" else "minimize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1),
    )


def _try(optuna: Any, trial: Any, recipe: Recipe, metric: str) -> float:
    """The best `metric` of a run of `recipe`; a run that is worse than others at its epoch is cut short.

    Raises:
        optuna.TrialPruned: it was, or it diverged.
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


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        what = "optuna is not installed"
        raise MachineError(what, "tune needs the extra tune", "pip install 'bigmodel[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _layer(values: dict[tuple[str, str], Any]) -> Layer:
    sections: dict[str, dict[str, Any]] = {}
    for (section, key), value in values.items():
        sections.setdefault(section, {})[key] = value
    return Layer("search", sections)


def _example(space: Range | list[Any]) -> Any:
    return space.low if isinstance(space, Range) else space[0]


def _suggest(trial: Any, name: tuple[str, str], space: Range | list[Any]) -> Any:
    key = ".".join(name)
    if isinstance(space, Range):
        return trial.suggest_float(key, space.low, space.high, log=space.log)
    return trial.suggest_categorical(key, space)
