"""Learning-rate schedules: pure functions of the step, so that resuming needs only the step.

Each builder returns the multiplier of the base learning rate at a step (from 0). `warmup`
is the fraction of the run over which the multiplier rises linearly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated

from pydantic import Field

from bigmodel_cli.core.registry import schedules

Factor = Callable[[int], float]
Fraction = Annotated[float, Field(ge=0, lt=1)]


def _with_warmup(total_steps: int, warmup: float, after: Callable[[float], float], start: float = 0.0) -> Factor:
    """Rise from `start` to 1 during warmup, then follow `after`(fraction of the rest done), clamped at the end."""
    steps = round(warmup * total_steps)

    def factor(step: int) -> float:
        if step < steps:
            return start + (1 - start) * (step + 1) / (steps + 1)
        return after(min((step - steps) / max(total_steps - steps, 1), 1.0))

    return factor


@schedules.register()
def constant(total_steps: int, *, warmup: Fraction = 0.0) -> Factor:
    """Constant: 1 throughout."""
    return _with_warmup(total_steps, warmup, lambda done: 1.0)


@schedules.register()
def step(
    total_steps: int,
    *,
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.5, 0.75),
    gamma: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1,
    warmup: Fraction = 0.0,
) -> Factor:
    """Multiplied by `gamma` at each milestone, a fraction of the run (He et al. 2015)."""
    warmed = _with_warmup(total_steps, warmup, lambda done: 1.0)
    return lambda at: warmed(at) * gamma ** sum(at >= m * total_steps for m in milestones)


@schedules.register()
def cosine(total_steps: int, *, final: Annotated[float, Field(ge=0, le=1)] = 0.0, warmup: Fraction = 0.0) -> Factor:
    """Cosine decay from 1 to `final` (Loshchilov and Hutter 2016)."""
    return _with_warmup(total_steps, warmup, lambda done: final + (1 - final) * (1 + math.cos(math.pi * done)) / 2)


@schedules.register()
def one_cycle(
    total_steps: int, *, warmup: Fraction = 0.25, start: Annotated[float, Field(gt=0, le=1)] = 0.04
) -> Factor:
    """Warms up from `start` to 1, then falls linearly to 0 (Smith and Topin 2017)."""
    return _with_warmup(total_steps, warmup, lambda done: 1 - done, start)
