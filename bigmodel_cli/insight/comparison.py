"""Whether one model is better than another on the same samples. Shapes: N samples, R resamples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import metrics
from bigmodel_cli.metrics.intervals import Statistic, count, resample, statistics_of, width_of

LEVEL = 0.01
"""The p-value, corrected for all pairs, up to which a model is called better.

It is stricter than the usual 0.05 because the test knows the chance in the samples only: two seeds of one recipe are
two networks, which differ a little more than that (Bouthillier et al. 2021).
"""
RESAMPLES = 2000


@dataclass(frozen=True)
class Pair:
    """Two models by their places: the difference of the metric, first minus second, with its paired 95% interval.

    `p` is the chance of such a difference between equals, `p_corrected` that for all pairs together. `better` is the
    place of the better model, or None where none is shown. `only` counts the samples that only the first and only the
    second has right, for a metric that is right or wrong of each sample.
    """

    first: int
    second: int
    difference: float
    low: float
    high: float
    test: str
    p: float
    p_corrected: float
    better: int | None
    only: tuple[int, int] | None

    def to_dict(self) -> dict[str, Any]:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}


def compare_pairs(name: str, outputs: Sequence[Mapping[str, Any]], seed: int = 0) -> list[Pair]:
    """Every pair of models, of whose `outputs` each row is of the same sample, by the metric `name`.

    A metric that is right or wrong of each sample is tested by McNemar's exact test (1947), any other by the paired
    bootstrap: both models are drawn with the same samples.

    Raises:
        InputError: the metric is not a statistic of samples, or the outputs have different lengths.
    """
    found = [statistics_of([name], out).get(name) for out in outputs]
    statistics: list[Statistic] = []
    for value in found:
        if not callable(value):
            raise InputError(f"--metric {name}", "expected one that is a statistic of samples", "another --metric")
        statistics.append(value)
    sizes = {count(out) for out in outputs}
    if len(sizes) != 1:
        raise InputError(f"outputs of {sorted(sizes)} samples", "expected the same samples of each model")
    n, width = sizes.pop(), max(map(width_of, outputs))
    whole = torch.ones(1, n, dtype=torch.float64)
    values = [float(s(whole)) for s in statistics]
    drawn = resample({str(i): s for i, s in enumerate(statistics)}, n, width, seed, RESAMPLES)
    right = [_right(name, out) for out in outputs]
    rows: list[tuple[int, int, float, float, float, str, float, tuple[int, int] | None]] = []
    for a, b in combinations(range(len(outputs)), 2):
        difference = drawn[str(a)] - drawn[str(b)]
        low, high = difference.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        one, other = right[a], right[b]
        if one is not None and other is not None:
            only = (int((one & ~other).sum()), int((other & ~one).sum()))
            rows.append((a, b, values[a] - values[b], low, high, "McNemar, exact", mcnemar(*only), only))
        else:
            rows.append((a, b, values[a] - values[b], low, high, "paired bootstrap", _bootstrap_p(difference), None))
    corrected = holm([row[6] for row in rows])
    sign = 1 if metrics.get(name).meta.get("better") == "max" else -1
    return [
        Pair(a, b, d, low, high, test, p, adjusted, _better(a, b, sign * d, adjusted), only)
        for (a, b, d, low, high, test, p, only), adjusted in zip(rows, corrected, strict=True)
    ]


def _right(name: str, out: Mapping[str, Any]) -> Tensor | None:
    """(N,) bool whether each sample is right, for a metric that says just that."""
    value = metrics.get(name)(out)
    return value if isinstance(value, Tensor) and value.dtype == torch.bool and value.dim() == 1 else None


def _better(a: int, b: int, advantage: float, p: float) -> int | None:
    return None if p > LEVEL or not advantage else (a if advantage > 0 else b)


def mcnemar(only_first: int, only_second: int) -> float:
    """The two-sided exact p-value of McNemar's test: the chance of so uneven a split of what only one has right."""
    from scipy.stats import binomtest

    both = only_first + only_second
    return float(binomtest(only_first, both, 0.5).pvalue) if both else 1.0


def _bootstrap_p(differences: Tensor) -> float:
    """The two-sided p-value of resampled differences (R,): how often they fall on the other side of 0."""
    n = len(differences)
    sides = (float((differences <= 0).sum()) + 1) / (n + 1), (float((differences >= 0).sum()) + 1) / (n + 1)
    return min(1.0, 2 * min(sides))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values that hold for all of them together, by Holm's step-down method (1979)."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, highest = [0.0] * len(p_values), 0.0
    for place, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[i]))
        corrected[i] = highest
    return corrected


def recipe_differences(recipes: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The fields of recipes, as ``section.key``, that are not the same in all, with the value in each."""
    flat = [dict(_flat(recipe)) for recipe in recipes]
    keys = dict.fromkeys(key for values in flat for key in values)
    rows = {key: [values.get(key) for values in flat] for key in keys}
    return {key: values for key, values in rows.items() if any(value != values[0] for value in values)}


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        found += _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else [(prefix + key, value)]
    return found
