"""The phases of a run: build, prepare, execute. All training goes through here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from bigmodel_cli.core.interactions import is_solved
from bigmodel_cli.core.recipe import Recipe
from bigmodel_cli.engine.distributed.process_group import SINGLE_PROCESS, Group
from bigmodel_cli.engine.training.build_run import Built, build
from bigmodel_cli.engine.training.cached_features import with_cached_features
from bigmodel_cli.engine.training.closed_form import solve_model
from bigmodel_cli.engine.training.folded_batchnorm import fold_kept_statistics
from bigmodel_cli.engine.training.linear_probe import solve, start_from_solved_head
from bigmodel_cli.engine.training.loop import fit
from bigmodel_cli.engine.training.reference_outputs import with_reference_outputs
from bigmodel_cli.engine.training.run import Hooks, Run


def assemble(
    recipe: Recipe,
    resumed: Mapping[str, Any] | None = None,
    recorded: Mapping[str, Any] | None = None,
    *,
    measure: bool = True,
    group: Group = SINGLE_PROCESS,
    hooks: Hooks = Hooks(),
) -> Run:
    """Build and prepare a run of `recipe` for :func:`execute`. The arguments are those of ``build_run.build``.

    Raises:
        BigmodelError: the data, checkpoint or device is missing or incompatible.
    """
    return prepare(build(recipe, resumed, recorded, measure=measure, group=group), hooks)


def prepare(built: Built, hooks: Hooks = Hooks()) -> Run:
    """Turn a build into a run: cache backbone features and reference outputs if the fine-tuning method uses them.

    Raises:
        InputError: the head's input is not one vector per sample.
    """
    run = replace(built.draft, hooks=hooks)
    run = with_cached_features(run) if built.caches_features else run
    return with_reference_outputs(run) if run.adapted.once else run


def execute(run: Run, after_step: Callable[[], None] = lambda: None) -> bool:
    """Train the run, or solve for the model or its head where it does so. Return True unless a signal stopped it.

    Raises:
        DivergedError: a loss or gradient is not finite; the step was skipped.
        MachineError: out of memory at one sample per micro-batch.
    """
    if is_solved(run.model):
        return solve_model(run)
    if run.adapted.solve:
        return solve(run)
    if not start_from_solved_head(run):
        return False
    fold_kept_statistics(run)
    return fit(run, after_step)
