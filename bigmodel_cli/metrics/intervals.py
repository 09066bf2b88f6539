"""Metrics of a sample with their intervals. Shapes: N samples, R resamples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import metrics

RESAMPLES = 1000
CHUNK = 4_000_000  # elements of a bootstrap chunk: 32 MB

Outputs = Mapping[str, Any]
"""What a task's `outputs` say of each sample, first dimension N."""
Statistic = Callable[[Tensor], Tensor]
"""Weights (R,N) of the samples -> the metric of each weighting, (R,)."""


@dataclass(frozen=True)
class Figure:
    """A value with its 95% interval; None where the metric is no statistic of samples."""

    value: float
    low: float | None = None
    high: float | None = None

    def to_dict(self) -> dict[str, float | None]:
        return {"value": self.value, "low": self.low, "high": self.high}


def measure(names: Iterable[str], outputs: Outputs, seed: int = 0, resamples: int = RESAMPLES) -> dict[str, Figure]:
    """The metrics `names` of `outputs`, in that order; those that say nothing of them are left out.

    A registered metric takes the outputs and returns

    * a tensor (N,), one value a sample, whose mean it is;
    * a function of weights (R,N) that gives (R,), for what is no mean: it gets an interval too;
    * a number, which has no interval;
    * None, where it has no meaning (the best five of three classes).

    Raises:
        InputError: there is no such metric, or it needs what these outputs lack.
    """
    found: dict[str, Statistic | float] = {}
    for name in dict.fromkeys(names):
        entry = metrics.get(name)
        lacking = [key for key in entry.meta.get("needs", ()) if key not in outputs]
        if lacking:
            what = f"metric {name} needs {' and '.join(lacking)}"
            raise InputError(what, f"the task gives {', '.join(sorted(outputs))}", "another --metric")
        value = entry(outputs)
        if isinstance(value, Tensor) and value.dim():
            value = mean_of(value)
        if value is not None:
            found[name] = value if callable(value) else float(value)
    statistics = {name: value for name, value in found.items() if callable(value)}
    widths = [x.shape[1] for x in outputs.values() if isinstance(x, Tensor) and x.dim() == 2]
    drawn = with_intervals(statistics, count(outputs), max(widths, default=1), seed, resamples)
    return {name: drawn[name] if callable(value) else Figure(value) for name, value in found.items()}


def count(outputs: Outputs) -> int:
    """N."""
    return len(next(iter(outputs.values())))


def mean_of(values: Tensor) -> Statistic:
    """The weighted mean of (N,) values."""
    return lambda weights: weights @ values.double() / weights.sum(1)


def ratio_of(a: Tensor, b: Tensor) -> Statistic:
    """The weighted sum of `a` (N,) over that of `b` (N,), of which there is at least one."""
    return lambda weights: weights @ a.double() / (weights @ b.double()).clamp(min=1)


def with_intervals(
    statistics: Mapping[str, Statistic], n: int, width: int, seed: int, resamples: int = RESAMPLES
) -> dict[str, Figure]:
    """Each statistic on the whole sample, and the 2.5 and 97.5 percentiles over resamples (Efron 1979).

    A chunk of R resamples takes (R,N) and (R,width) doubles; R is what keeps either near `CHUNK` elements.
    """
    generator = torch.Generator().manual_seed(seed)
    whole = torch.ones(1, n, dtype=torch.float64)
    values = {name: float(statistic(whole)) for name, statistic in statistics.items()}
    drawn: dict[str, list[Tensor]] = {name: [] for name in statistics}
    size = max(1, min(resamples, CHUNK // max(n, width)))
    for start in range(0, resamples if statistics else 0, size):
        rows = min(size, resamples - start)
        picks = torch.randint(n, (rows, n), generator=generator)
        weights = torch.zeros(rows, n, dtype=torch.float64).scatter_add_(1, picks, torch.ones(rows, n).double())
        for name, statistic in statistics.items():
            drawn[name].append(statistic(weights))
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    result = {}
    for name, value in values.items():
        low, high = torch.cat(drawn[name]).quantile(ends).tolist()
        result[name] = Figure(value, low, high)
    return result
