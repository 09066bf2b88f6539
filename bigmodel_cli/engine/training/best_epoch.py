"""Which epoch is the best on the validation split."""

from __future__ import annotations

import math

from bigmodel_cli.engine.training.run import Run
from bigmodel_cli.metrics.intervals import standard_error
from bigmodel_cli.metrics.reading import is_share

FEW_SAMPLES = 500
"""A share of so many has a standard error of 2.2 points at most."""


def is_best(run: Run, metrics: dict[str, float], epoch: int) -> bool:
    """Whether this `epoch`, with these `metrics`, is the best so far by the task's metric; then it is kept as such.

    The lower loss decides a tie, and between shares that a few samples cannot tell apart: the best of a dozen epochs
    by the accuracy on fifty samples is the luckiest, and it may be one from which training has yet to begin. What is
    not a number is worse than any.
    """
    name, mode = run.task.best
    progress, value, loss = run.progress, metrics[name], metrics["loss"]
    if progress.best_metric is not None and not math.isnan(progress.best_metric):
        better = value - progress.best_metric if mode == "max" else progress.best_metric - value
        if value == progress.best_metric or abs(better) <= indistinct(name, progress.best_metric, len(run.val)):
            better = progress.best_loss - loss
        if not better > 0:  # also false for NaN
            return False
    progress.best_metric, progress.best_loss, progress.best_epoch = value, loss, epoch
    return True


def indistinct(metric: str, value: float, samples: int) -> float:
    """How far from `value` of `metric` another may be that as many `samples` cannot tell apart from it."""
    return standard_error(value, samples) if is_share(metric) and 0 < samples < FEW_SAMPLES else 0.0
