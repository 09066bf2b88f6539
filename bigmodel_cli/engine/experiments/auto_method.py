"""``--method auto``: each way of fine-tuning is tried for a short while, and validation says which one to take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bigmodel_cli.core.errors import DivergedError, InputError
from bigmodel_cli.core.recipe import Recipe
from bigmodel_cli.core.registry import methods
from bigmodel_cli.engine.training.assemble import assemble, execute

SHARE = 5  # a trial has a fifth of the epochs, at least one


@dataclass(frozen=True)
class Trial:
    """What a short try of a method came to on val; `metrics` is empty where the method does not fit the model."""

    method: str
    metric: str
    value: float | None
    loss: float
    trained: int
    why_not: str = ""

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.method}: {self.why_not}"
        return f"{self.method}: val {self.metric} {self.value:.4f}, loss {self.loss:.4f}, {self.trained:,} trained"


def choose(recipe_of: Callable[[dict[str, Any]], Recipe], tell: Callable[[str], None]) -> tuple[str, list[Trial]]:
    """The best of the candidates by val, and what each came to. `recipe_of` gives the recipe of a ``start`` section.

    Raises:
        InputError: none of them fits the model.
    """
    trials = []
    for method in candidates():
        trials.append(_try(method, recipe_of({"method": method})))
        tell(f"tried {trials[-1]}")
    able = [t for t in trials if t.value is not None]
    if not able:
        raise InputError("--method auto: no method fits this model", trials[0].why_not)
    best = max(able, key=lambda t: (t.value, -t.loss))  # the first of equals: candidates come cheapest first
    others = ", ".join(f"{t.method} {t.value:.4f}" for t in able if t is not best)
    tell(f"chosen {best.method}: val {best.metric} {best.value:.4f} after a {SHARE}th of the epochs, against {others}")
    return best.method, trials


def candidates() -> list[str]:
    """The methods registered with ``auto``, their place from the cheapest on: of two equally good the earlier wins."""
    places = {name: int(methods.get(name).meta.get("auto", 0)) for name in methods.names()}
    return sorted((name for name, place in places.items() if place), key=places.__getitem__)


def _try(method: str, recipe: Recipe) -> Trial:
    short = recipe.train.model_copy(update={"epochs": max(recipe.train.epochs // SHARE, 1)})
    try:
        run = assemble(recipe.model_copy(update={"train": short}))
        execute(run)
    except (InputError, DivergedError) as error:
        return Trial(method, "", None, float("inf"), 0, error.line)
    metric, mode = run.task.best
    value = run.progress.best_metric
    trained = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    sign = 1 if mode == "max" or value is None else -1
    return Trial(method, metric, None if value is None else sign * value, run.progress.best_loss, trained)
