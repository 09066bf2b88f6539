"""Computes metrics with 95% confidence intervals: Wilson's of shares, else bootstrapped. N samples, R resamples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import metrics

RESAMPLES = 1000
Z = 1.959963984540054  # the 97.5 percentile of the normal distribution
CHUNK = 4_000_000  # elements of a bootstrap chunk: 32 MB

Outputs = Mapping[str, Any]
"""A task's `outputs` for all samples, first dimension N."""
Statistic = Callable[[Tensor], Tensor]
"""Weights (R,N) of the samples -> the metric of each weighting, (R,)."""


@dataclass(frozen=True)
class Figure:
    """A value with its 95% interval; the bounds are None if the metric is not a statistic of samples."""

    value: float
    low: float | None = None
    high: float | None = None

    def to_dict(self) -> dict[str, float | None]:
        return {"value": self.value, "low": self.low, "high": self.high}


def measure(names: Iterable[str], outputs: Outputs, seed: int = 0, resamples: int = RESAMPLES) -> dict[str, Figure]:
    """The metrics `names` of `outputs`, in that order, without those that are undefined for them.

    With 0 `resamples`, none has an interval.

    A registered metric takes the outputs and returns

    * a tensor (N,), one value per sample, if the metric is their mean; of bools, if it is the share of the true ones;
    * a function of weights (R,N) that returns (R,), for any other statistic of the samples;
    * a number, which gets no interval;
    * None, if it is undefined (top-5 accuracy of three classes).

    Raises:
        InputError: there is no such metric, or it needs an output that is missing.
    """
    found = statistics_of(names, outputs)
    statistics = {name: value for name, value in found.items() if callable(value)}
    measured = with_intervals(statistics, count(outputs), width_of(outputs), seed, resamples)
    return {name: measured[name] if callable(value) else Figure(value) for name, value in found.items()}


def statistics_of(names: Iterable[str], outputs: Outputs) -> dict[str, Statistic | float]:
    """The metrics `names` of `outputs` as functions of the weights of samples, or as numbers; see :func:`measure`.

    Raises:
        InputError: there is no such metric, or it needs an output that is missing.
    """
    found: dict[str, Statistic | float] = {}
    for name in dict.fromkeys(names):
        entry = metrics.get(name)
        absent = [key for key in entry.meta.get("needs", ()) if key not in outputs]
        if absent:
            what = f"metric {name} needs {' and '.join(absent)}"
            raise InputError(what, f"the task outputs {', '.join(sorted(outputs))}", "another --metric")
        value = entry(outputs)
        if isinstance(value, Tensor) and value.dim():
            value = MeanOf(value)
        if value is not None:
            found[name] = value if callable(value) else float(value)
    return found


def width_of(outputs: Outputs) -> int:
    """The most columns of an output."""
    return max((x.shape[1] for x in outputs.values() if isinstance(x, Tensor) and x.dim() == 2), default=1)


def count(outputs: Outputs) -> int:
    """N."""
    return len(next(iter(outputs.values())))


@dataclass(frozen=True, eq=False)
class MeanOf:
    """The weighted mean of `values` (N,)."""

    values: Tensor

    def __call__(self, weights: Tensor) -> Tensor:
        return weights @ self.values.double() / weights.sum(1)

    @property
    def is_share(self) -> bool:
        """Whether it is the share of samples that have a property: each value is true or false."""
        return self.values.dtype == torch.bool


def standard_error(value: float, n: int) -> float:
    """That of a share of n samples; above 0 even where all or none have the property (Laplace's rule of succession)."""
    smoothed = (value * n + 1) / (n + 2)
    return math.sqrt(max(smoothed * (1 - smoothed), 0.0) / n)  # a damaged checkpoint may hold any value


def share(value: float, n: int) -> Figure:
    """A share of n samples with Wilson's interval (1927), which is right for few samples, and for all or none of them.

    Resampling 7 right answers gives 7 right answers, always: 100% to 100%. This gives 65% to 100%.
    """
    middle, radius = value + Z**2 / (2 * n), Z * math.sqrt(value * (1 - value) / n + Z**2 / (4 * n**2))
    low, high = ((middle + sign * radius) / (1 + Z**2 / n) for sign in (-1, 1))
    return Figure(value, max(0.0, min(value, low)), min(1.0, max(value, high)))


def ratio_of(a: Tensor, b: Tensor) -> Statistic:
    """The weighted sum of `a` (N,) divided by that of `b` (N,), which is at least 1."""
    return lambda weights: weights @ a.double() / (weights @ b.double()).clamp(min=1)


def with_intervals(
    statistics: Mapping[str, Statistic], n: int, width: int, seed: int, resamples: int = RESAMPLES
) -> dict[str, Figure]:
    """Each statistic on the whole sample, and the 2.5 and 97.5 percentiles over resamples (Efron 1979); shares apart.

    A chunk of R resamples takes (R,N) and (R,width) doubles; R keeps both near or below `CHUNK` elements.
    """
    whole = torch.ones(1, n, dtype=torch.float64)
    values = {name: float(statistic(whole)) for name, statistic in statistics.items()}
    if not resamples:
        return {name: Figure(value) for name, value in values.items()}
    shares = {name for name, statistic in statistics.items() if isinstance(statistic, MeanOf) and statistic.is_share}
    others = {name: statistic for name, statistic in statistics.items() if name not in shares}
    resampled = resample(others, n, width, seed, resamples)
    bounds = torch.tensor([0.025, 0.975], dtype=torch.float64)
    result = {}
    for name, value in values.items():
        if name in shares:
            result[name] = share(value, n)
            continue
        low, high = resampled[name].quantile(bounds).tolist()
        result[name] = Figure(value, low, high)
    return result


def resample(
    statistics: Mapping[str, Statistic], n: int, width: int, seed: int, resamples: int = RESAMPLES
) -> dict[str, Tensor]:
    """Each statistic on `resamples` draws with replacement of the n samples, (resamples,); the same draws for all."""
    generator = torch.Generator().manual_seed(seed)
    resampled: dict[str, list[Tensor]] = {name: [] for name in statistics}
    size = max(1, min(resamples, CHUNK // max(n, width)))
    for start in range(0, resamples if statistics else 0, size):
        rows = min(size, resamples - start)
        indices = torch.randint(n, (rows, n), generator=generator)
        weights = torch.zeros(rows, n, dtype=torch.float64).scatter_add_(1, indices, torch.ones(rows, n).double())
        for name, statistic in statistics.items():
            resampled[name].append(statistic(weights))
    return {name: torch.cat(parts) for name, parts in resampled.items()}
