"""Which epoch is the best on the validation split."""

from __future__ import annotations

from bigmodel_cli.engine.training.run import Run
from bigmodel_cli.metrics.intervals import standard_error
from bigmodel_cli.metrics.reading import is_share

FEW_SAMPLES = 500
"""A share of so many has a standard error of 2.2 points at most."""


def is_best(run: Run, metrics: dict[str, float], epoch: int) -> bool:
    """Whether this `epoch`, with these `metrics`, is the best so far by the task's metric; then it is kept as such.

    The lower loss decides a tie, and between shares that a few samples cannot tell apart: the best of a dozen epochs
    by the accuracy on fifty samples is the luckiest, and it may be one from which training has yet to begin.
    """
    name, mode = run.task.best
    progress, value, loss = run.progress, metrics[name], metrics["loss"]
    if progress.best_metric is not None:
        better = value - progress.best_metric if mode == "max" else progress.best_metric - value
        few = is_share(name) and len(run.val) < FEW_SAMPLES
        if abs(better) <= (standard_error(progress.best_metric, len(run.val)) if few else 0):
            better = progress.best_loss - loss
        if better <= 0:
            return False
    progress.best_metric, progress.best_loss, progress.best_epoch = value, loss, epoch
    return True
