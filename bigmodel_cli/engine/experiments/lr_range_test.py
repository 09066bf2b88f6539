"""The learning-rate range test (Smith 2015): the rate climbs each step, and the loss tells which rates teach."""

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
SMOOTHING = 0.9  # of the running mean of the loss
BLOWN_UP = 4.0  # times the least loss so far: no larger rate is worth a step


@dataclass(frozen=True)
class RangeTest:
    """Rates and smoothed losses, a pair a step; `suggested` is where the loss falls fastest."""

    rates: list[float]
    losses: list[float]
    suggested: float


def lr_range_test(recipe: Recipe, steps: int = 100) -> RangeTest:
    """Train for up to `steps` steps with rates from 1e-7 to 10, each the same factor above the last; nothing is kept.

    Raises:
        InputError: the loss never fell: there is no rate to suggest; or the method takes no steps.
    """
    run = assemble(recipe)
    if not run.total_steps:
        what = f"method {recipe.start.method} takes no steps"
        raise InputError(what, "expected one that trains at a learning rate", "--method full")
    base = max(run.base_lrs)
    run = replace(run, lr_factor=lambda step: rate_at(step, steps) / base)
    rates: list[float] = []
    losses: list[float] = []
    smooth = 0.0
    for step, taken in enumerate(itertools.islice(steps_of(run), steps)):
        loss = taken.loss.item() / taken.count
        if not math.isfinite(loss) or not taken.finite.item():
            break
        smooth = SMOOTHING * smooth + (1 - SMOOTHING) * loss
        rates.append(rate_at(step, steps))
        losses.append(smooth / (1 - SMOOTHING ** (step + 1)))  # without it the mean would begin at zero
        if losses[-1] > BLOWN_UP * min(losses):
            break
    return RangeTest(rates, losses, steepest(rates, losses))


def rate_at(step: int, steps: int) -> float:
    """The rate of `step`, of `steps` from LOWEST to HIGHEST."""
    return LOWEST * (HIGHEST / LOWEST) ** (step / max(steps - 1, 1))


def steps_of(run: Run) -> Iterator[StepResult]:
    """Steps over one epoch after the other, without an end; nothing is evaluated or saved between them."""
    while True:
        run.train_mode()
        for raw in run.batches.steps(run.progress.epoch):
            yield train_step(run, raw)
            run.progress.step += 1
            run.progress.batch_in_epoch += 1
        run.progress.epoch, run.progress.batch_in_epoch = run.progress.epoch + 1, 0


def steepest(rates: list[float], losses: list[float]) -> float:
    """The rate at which the loss falls fastest per factor of the rate, before its minimum.

    Raises:
        InputError: it does not fall.
    """
    lowest = losses.index(min(losses)) if losses else 0
    falls = [losses[i + 1] - losses[i - 1] for i in range(1, lowest)]
    if not falls or min(falls) >= 0:
        raise InputError("the loss fell at no learning rate", "expected it to, somewhere from 1e-7 to 10", "more data")
    return rates[falls.index(min(falls)) + 1]
