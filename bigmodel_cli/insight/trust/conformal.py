"""Conformal prediction: sets of classes that hold the true one at a chosen rate. Shapes: N samples, K classes.

A registered score says how strange each class would be as the true one. A set holds the classes that are no stranger
than most true classes of the calibration samples (Vovk et al. 2005, split conformal prediction).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import conformal_scores

Score = Callable[[Tensor, Tensor], Tensor]
"""Probabilities (N,K) and uniform random numbers (N,1) -> scores (N,K), higher for a stranger class."""
TUNING = 0.2
"""The share of the calibration samples on which a score's own options are chosen; the threshold is set on the rest."""
LEAST = 20
"""The fewest calibration samples."""


class Noisy(NamedTuple):
    """Probabilities (N,K), labels (N,), and the random numbers (N,1) that break ties within a class."""

    shares: Tensor
    labels: Tensor
    noise: Tensor


@dataclass(frozen=True)
class Sets:
    """What the sets of one score are like on the measured samples.

    `size_at_level` is the mean size where the threshold is set so that exactly the level is covered on the measured
    samples themselves: it compares scores that cover a little more or less than the level.
    """

    coverage: float
    mean_size: float
    empty: float
    single: float
    worst_class: float | None
    size_at_level: float
    threshold: float | None
    options: Mapping[str, float]

    def to_dict(self) -> dict[str, object]:
        return {**vars(self), "options": dict(self.options)}


def conformal_sets(
    calibration: tuple[Tensor, Tensor], measured: tuple[Tensor, Tensor], level: float, seed: int = 0
) -> dict[str, Sets]:
    """The sets of every registered score, calibrated on one pair (logits (N,K), labels (N,)), measured on another.

    Raises:
        InputError: there are too few samples to calibrate on.
    """
    if len(calibration[1]) < LEAST or not len(measured[1]):
        what = f"{len(calibration[1])} samples to calibrate conformal sets on"
        raise InputError(what, f"expected at least {LEAST}, and some to measure")
    found = {}
    for name in conformal_scores.names():
        generator = torch.Generator().manual_seed(seed)
        logits, labels = calibration
        order = torch.randperm(len(labels), generator=generator)
        tuning, rest = order.tensor_split([round(TUNING * len(order))])
        parts = [(logits[i], labels[i]) for i in (tuning, rest)]
        found[name] = _sets_of(name, parts[0], parts[1], measured, level, generator)
    return found


def _sets_of(
    name: str,
    tuning: tuple[Tensor, Tensor],
    rest: tuple[Tensor, Tensor],
    measured: tuple[Tensor, Tensor],
    level: float,
    generator: torch.Generator,
) -> Sets:
    tuned, fixed, held = (_with_noise(*pair, generator) for pair in (tuning, rest, measured))
    choices = list(conformal_scores.get(name)(tuned.shares, tuned.labels, level))
    if len(choices) == 1:  # nothing to choose: all samples set the threshold
        fixed = Noisy(*(torch.cat(pair) for pair in zip(tuned, fixed, strict=True)))
        options, score = choices[0]
    else:
        options, score = min(choices, key=lambda c: _size_at(c[1], tuned, level))
    q = threshold(_true(score(fixed.shares, fixed.noise), fixed.labels), level)
    scores = score(held.shares, held.noise)
    inside = scores <= q
    hit = inside.gather(1, held.labels[:, None])[:, 0]
    sizes = inside.sum(1)
    counts = held.labels.bincount(minlength=inside.shape[1])
    by_class = hit.double().new_zeros(inside.shape[1]).index_add_(0, held.labels, hit.double()) / counts.clamp(min=1)
    often = counts >= LEAST
    return Sets(
        coverage=float(hit.double().mean()),
        mean_size=float(sizes.double().mean()),
        empty=float((sizes == 0).double().mean()),
        single=float((sizes == 1).double().mean()),
        worst_class=float(by_class[often].min()) if often.any() else None,
        size_at_level=_size_at(score, held, level),
        threshold=q if math.isfinite(q) else None,
        options=options,
    )


def _with_noise(logits: Tensor, labels: Tensor, generator: torch.Generator) -> Noisy:
    noise = torch.rand(len(labels), 1, generator=generator, dtype=torch.float64)
    return Noisy(logits.double().softmax(1), labels, noise)


def _true(scores: Tensor, labels: Tensor) -> Tensor:
    return scores.gather(1, labels[:, None])[:, 0]


def threshold(scores: Tensor, level: float) -> float:
    """The ceil((n+1) level)-th smallest of the scores (n,) of true classes; infinite if there are too few samples."""
    n = len(scores)
    k = math.ceil((n + 1) * level - 1e-9)
    return math.inf if k > n else float(scores.sort().values[k - 1])


def _size_at(score: Score, data: Noisy, level: float) -> float:
    """The mean size of the sets where exactly `level` of these samples is covered."""
    scores = score(data.shares, data.noise)
    true = _true(scores, data.labels).sort().values
    q = true[min(len(true) - 1, max(0, math.ceil(level * len(true)) - 1))]
    return float((scores <= q).sum(1).double().mean())


def ranked(shares: Tensor) -> tuple[Tensor, Tensor]:
    """(N,K) the place of each class by probability, from 1, and the total probability of the classes before it."""
    values, order = shares.sort(dim=1, descending=True, stable=True)
    before = values.cumsum(1) - values
    place = torch.arange(1, shares.shape[1] + 1, device=shares.device).expand_as(order)
    places, totals = torch.empty_like(order), torch.empty_like(shares)
    places.scatter_(1, order, place)
    totals.scatter_(1, order, before)
    return places, totals
