"""The phases of a run, in their order: built, prepared, executed. Whatever trains goes through here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from bigmodel_cli.core.recipe import Recipe
from bigmodel_cli.engine.distributed.process_group import SINGLE_PROCESS, Group
from bigmodel_cli.engine.training.build_run import Built, build
from bigmodel_cli.engine.training.cached_features import with_cached_features
from bigmodel_cli.engine.training.linear_probe import solve
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
    """A run of `recipe` that is ready for :func:`execute`; the arguments are those of ``build_run.build``.

    Raises:
        BigmodelError: data, checkpoint or device is not there or does not fit.
    """
    return prepare(build(recipe, resumed, recorded, measure=measure, group=group), hooks)


def prepare(built: Built, hooks: Hooks = Hooks()) -> Run:
    """The run itself: what a frozen backbone or the start gives for each sample is computed, where a method asks.

    Raises:
        InputError: the head takes something other than one vector a sample.
    """
    run = replace(built.draft, hooks=hooks)
    run = with_cached_features(run) if built.caches_features else run
    return with_reference_outputs(run) if run.adapted.once else run


def execute(run: Run, after_step: Callable[[], None] = lambda: None) -> bool:
    """Solve for the weights, or train them step by step, as the method says. True where it ended by itself.

    Raises:
        DivergedError: a loss or gradient is not finite; the step was not taken.
        MachineError: out of memory with one sample a micro-batch.
    """
    return solve(run) if run.adapted.solve else fit(run, after_step)
