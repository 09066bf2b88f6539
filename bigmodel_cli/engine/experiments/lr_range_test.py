"""The learning-rate range test (Smith 2015): raise the rate at each step and watch the loss."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.recipe import Recipe
from bigmodel_cli.engine.training.assemble import assemble
from bigmodel_cli.engine.training.loop import train_step
from bigmodel_cli.engine.training.run import Run, StepResult

LOWEST, HIGHEST = 1e-7, 10.0
SMOOTHING = 0.9  # decay of the running mean of the loss
DIVERGED = 4.0  # stop at this multiple of the lowest loss so far


@dataclass(frozen=True)
class RangeTest:
    """Rates and smoothed losses, one pair per step. `suggested` is the rate at which the loss falls fastest."""

    rates: list[float]
    losses: list[float]
    suggested: float


def lr_range_test(recipe: Recipe, steps: int = 100) -> RangeTest:
    """Train for up to `steps` steps while the rate grows geometrically from 1e-7 to 10. Nothing is saved.

    Raises:
        InputError: the loss never fell, or the fine-tuning method takes no steps.
    """
    run = assemble(recipe)
    if not run.total_steps:
        problem = f"method {recipe.start.method} takes no steps"
        raise InputError(problem, "expected one that trains at a learning rate", "--method full")
    base = max(run.base_lrs)
    run = replace(run, lr_factor=lambda step: rate_at(step, steps) / base)
    rates: list[float] = []
    losses: list[float] = []
    mean = 0.0
    for step, result in enumerate(itertools.islice(steps_of(run), steps)):
        loss = result.loss.item() / result.count
        if not math.isfinite(loss) or not result.finite.item():
            break
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        rates.append(rate_at(step, steps))
        losses.append(mean / (1 - SMOOTHING ** (step + 1)))  # bias correction, since the mean starts at zero
        if losses[-1] > DIVERGED * min(losses):
            break
    return RangeTest(rates, losses, steepest(rates, losses))


def rate_at(step: int, steps: int) -> float:
    """Return the rate of `step`, one of `steps` rates from LOWEST to HIGHEST."""
    return LOWEST * (HIGHEST / LOWEST) ** (step / max(steps - 1, 1))


def steps_of(run: Run) -> Iterator[StepResult]:
    """Train endlessly, epoch after epoch, and yield each step's result. Nothing is evaluated or saved."""
    while True:
        run.train_mode()
        for raw in run.batches.steps(run.progress.epoch):
            yield train_step(run, raw)
            run.progress.step += 1
            run.progress.batch_in_epoch += 1
        run.progress.epoch, run.progress.batch_in_epoch = run.progress.epoch + 1, 0


def steepest(rates: list[float], losses: list[float]) -> float:
    """Return the rate at which the loss falls fastest per factor of the rate, before its minimum.

    Raises:
        InputError: the loss does not fall.
    """
    lowest = losses.index(min(losses)) if losses else 0
    slopes = [losses[i + 1] - losses[i - 1] for i in range(1, lowest)]
    if not slopes or min(slopes) >= 0:
        problem = "the loss did not fall at any learning rate"
        raise InputError(problem, "expected it to fall between 1e-7 and 10", "more data")
    return rates[slopes.index(min(slopes)) + 1]
