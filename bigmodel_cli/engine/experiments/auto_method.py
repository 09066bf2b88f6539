"""``--method auto``: train briefly with each fine-tuning method, and choose the best on the validation split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bigmodel_cli.core.errors import DivergedError, InputError
from bigmodel_cli.core.recipe import Recipe
from bigmodel_cli.core.registry import methods, metrics
from bigmodel_cli.engine.training.assemble import assemble, execute
from bigmodel_cli.engine.training.best_epoch import indistinct
from bigmodel_cli.metrics.reading import bounds_of

TRIAL_FRACTION = 5  # a trial has 1/5 of the epochs, at least one


@dataclass(frozen=True)
class Trial:
    """The result of a trial of one method.

    `value` is the metric's, or minus an error's: the greater, the better; None if the method does not fit the model.
    `samples` is how many it was measured on.
    """

    method: str
    metric: str
    value: float | None
    loss: float
    trained: int
    samples: int = 0
    reason: str = ""

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.method}: {self.reason}"
        result = f"val {self.metric} {self.value:.4f}, loss {self.loss:.4f}"
        return f"{self.method}: {result}, {self.trained:,} trainable parameters"


def choose(recipe_of: Callable[[dict[str, Any]], Recipe], report: Callable[[str], None]) -> tuple[str, list[Trial]]:
    """Try all candidates and return the best method on the validation split, and all trials.

    `recipe_of` builds the recipe for a ``start`` section. `report` receives progress lines. Once a method
    is perfect on validation, the rest are not tried.

    Among values that the validation samples cannot tell apart, the lower loss decides, as between epochs.

    Raises:
        InputError: no method fits the model.
    """
    trials, left = [], candidates()
    while left:
        method = left.pop(0)
        trial = _run_trial(method, recipe_of({"method": method}))
        trials.append(trial)
        report(f"tried {trial}")
        if left and trial.value is not None and trial.value == perfect(trial.metric):
            report(f"not tried: {', '.join(left)}: no {trial.metric} is better")
            break
    valid = [t for t in trials if t.value is not None]
    if not valid:
        raise InputError("--method auto: no method fits this model", trials[0].reason)
    best = best_of(valid)
    others = ", ".join(f"{t.method} {t.value:.4f}" for t in valid if t is not best)
    result = f"chosen {best.method}: val {best.metric} {best.value:.4f} after 1/{TRIAL_FRACTION} of the epochs"
    result += f", compared with {others}" if others else ""
    by_loss = max(t.value for t in valid if t.value is not None) != best.value
    report(result + (f"; {best.samples} samples do not tell these apart, so the loss decided" if by_loss else ""))
    return best.method, trials


def best_of(valid: Sequence[Trial]) -> Trial:
    """The trial of the greatest value; where the samples cannot tell it from others, of those the one of least loss."""
    value, first = max(((t.value, t) for t in valid if t.value is not None), key=lambda pair: pair[0])
    apart = indistinct(first.metric, value, first.samples)
    near = [t for t in valid if t.value is not None and value - t.value <= apart]
    return min(near, key=lambda t: t.loss)  # on a tie the first, which is the cheapest


def candidates() -> list[str]:
    """Return the methods registered with ``auto``, cheapest first. On a tie the cheaper one is chosen."""
    ranks = {name: int(methods.get(name).meta.get("auto", 0)) for name in methods.names()}
    return sorted((name for name, rank in ranks.items() if rank), key=ranks.__getitem__)


def perfect(metric: str) -> float | None:
    """The value of a :class:`Trial` that nothing exceeds: the greatest of `metric`, or minus the least of an error."""
    found = metrics.found.get(metric)
    if found is None:
        return None
    least, most = bounds_of(metric)
    return most if found.meta["better"] == "max" else -least


def _run_trial(method: str, recipe: Recipe) -> Trial:
    train = recipe.train.model_copy(update={"epochs": max(recipe.train.epochs // TRIAL_FRACTION, 1)})
    try:
        run = assemble(recipe.model_copy(update={"train": train}))
        execute(run)
    except (InputError, DivergedError) as error:
        return Trial(method, "", None, float("inf"), 0, reason=error.line)
    metric, mode = run.task.best
    value = run.progress.best_metric
    trained = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    sign = 1 if mode == "max" or value is None else -1
    signed = None if value is None else sign * value
    return Trial(method, metric, signed, run.progress.best_loss, trained, len(run.val))
