"""Metrics of predicted numbers, in the units of the data; of several, their mean.

Shapes: N samples, K numbers, R resamples. `predictions` and `values` are (N,K) float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bigmodel_cli.core.registry import metrics
from bigmodel_cli.metrics.intervals import Outputs, Statistic

NEEDS = ("predictions", "values")


@metrics.register(better="min", needs=NEEDS, least=0)
def mean_absolute_error(out: Outputs) -> Tensor:
    """The mean distance of predictions from values."""
    return (out["predictions"] - out["values"]).abs().mean(1)  # type: ignore[no-any-return]


@metrics.register(better="min", needs=NEEDS, least=0)
def mean_squared_error(out: Outputs) -> Tensor:
    """The mean squared distance of predictions from values."""
    return (out["predictions"] - out["values"]).square().mean(1)  # type: ignore[no-any-return]


@metrics.register(better="min", needs=NEEDS, least=0)
def root_mean_squared_error(out: Outputs) -> Statistic:
    """The root of the mean squared distance, of each number by itself."""
    squares = (out["predictions"] - out["values"]).double().square()
    return lambda weights: (weights @ squares / weights.sum(1, keepdim=True)).sqrt().mean(1)


@metrics.register(better="max", needs=NEEDS, most=1)
def r2(out: Outputs) -> Statistic | None:
    """The coefficient of determination: 1 - sum of squared errors / sum of squared deviations from the mean."""
    values, predictions = out["values"].double(), out["predictions"].double()
    if len(values) < 2 or bool((values == values[:1]).all(0).any()):
        return None
    centre = values.mean(0)
    squares, moved = (predictions - values).square(), values - centre

    def statistic(weights: Tensor) -> Tensor:
        total = weights.sum(1, keepdim=True)
        around = weights @ moved.square() - (weights @ moved).square() / total
        return (1 - weights @ squares / around.clamp(min=1e-300)).mean(1)

    return statistic


@metrics.register(better="max", needs=NEEDS, least=-1, most=1)
def spearman(out: Outputs) -> Statistic | None:
    """Spearman's rank correlation; equal values share their mean rank. Intervals resample the ranks of the whole."""
    values, predictions = out["values"].double(), out["predictions"].double()
    if len(values) < 2 or any(bool((x == x[:1]).all(0).any()) for x in (values, predictions)):
        return None
    a, b = (torch.stack([_ranks(column) for column in x.T], 1) for x in (values, predictions))
    a, b = a - a.mean(0), b - b.mean(0)

    def statistic(weights: Tensor) -> Tensor:
        total = weights.sum(1, keepdim=True)
        mean_a, mean_b = weights @ a / total, weights @ b / total
        both = weights @ (a * b) / total - mean_a * mean_b
        spread = (weights @ a.square() / total - mean_a.square()) * (weights @ b.square() / total - mean_b.square())
        return (both / spread.clamp(min=1e-300).sqrt()).mean(1)

    return statistic


def _ranks(x: Tensor) -> Tensor:
    """(N,) ranks from 1; equal values share their mean rank."""
    _, inverse, counts = x.unique(return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    return (ends - (counts.double() - 1) / 2)[inverse]
