"""What a model gives away of who was in its training data: LiRA (Carlini et al. 2022, "Membership Inference Attacks
From First Principles").

Shapes: P audited samples, S shadow models, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

OWN_VARIANCE = 64
"""Shadow models from which each sample has a variance of its own; with fewer all share one, as Carlini et al. do."""
RATES = (0.01, 0.001)
RESAMPLES = 500


def confidence(logits: Tensor, labels: Tensor) -> Tensor:
    """log(p / (1 - p)) of the true class's probability p, (N,) from logits (N,K): normal where p itself is not."""
    logits = logits.double()
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -math.inf)
    return (own[:, 0] - others.logsumexp(1)).clamp(-50, 50)


def likelihood_ratio(target: Tensor, shadow: Tensor, inside: Tensor) -> Tensor:
    """LiRA's score (P,) of each sample, higher for a member.

    Args:
        target: confidences (P,) under the audited model.
        shadow: those under each shadow model, (S,P).
        inside: (S,P) bool, which shadow models trained on the sample. Some did and some did not, for every sample.
    """
    means, deviations = [], []
    for chosen in (inside, ~inside):
        weights = chosen.double()
        mean = (shadow * weights).sum(0) / weights.sum(0)
        squares = (shadow - mean).square() * weights
        own = squares.sum(0) / (weights.sum(0) - 1).clamp(min=1)
        shared = squares.sum() / (weights.sum() - weights.shape[1]).clamp(min=1)
        variance = own if len(shadow) >= OWN_VARIANCE else shared.expand_as(own)
        means.append(mean)
        deviations.append(variance.clamp(min=1e-12).sqrt())
    log = [-(((target - m) / d).square()) / 2 - d.log() for m, d in zip(means, deviations, strict=True)]
    return log[0] - log[1]


@dataclass(frozen=True)
class Attack:
    """How well a score tells members from others: AUC, and by false-positive rate the true-positive rate.

    Each is (value, low, high) with a 95% interval; None where there are too few others for such a rate.
    """

    auc: tuple[float, float, float]
    tpr: Mapping[float, tuple[float, float, float] | None]

    def to_dict(self) -> dict[str, Any]:
        named = {f"tpr_at_{rate:g}_fpr": figure for rate, figure in self.tpr.items()}
        return {
            name: None if figure is None else dict(zip(("value", "low", "high"), figure, strict=True))
            for name, figure in {"auc": self.auc, **named}.items()
        }


def measure_attack(members: Tensor, others: Tensor, seed: int = 0) -> Attack:
    """The attack that calls the samples of the highest scores members."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(scores: Tensor) -> Tensor:
        return scores[torch.randint(len(scores), (len(scores),), generator=generator)]

    pairs = [(members, others), *((drawn(members), drawn(others)) for _ in range(RESAMPLES))]
    return Attack(
        _figure([auc(*pair) for pair in pairs]),
        {
            rate: _figure([true_positive_rate(*pair, rate) for pair in pairs]) if rate * len(others) >= 1 else None
            for rate in RATES
        },
    )


def _figure(values: list[float]) -> tuple[float, float, float]:
    low, high = torch.tensor(values[1:], dtype=torch.float64).quantile(torch.tensor([0.025, 0.975]).double()).tolist()
    return values[0], low, high


def auc(members: Tensor, others: Tensor) -> float:
    """The probability that a member scores higher than another, ties by half."""
    ordered = others.sort().values
    below = torch.searchsorted(ordered, members.contiguous(), side="left").double()
    upto = torch.searchsorted(ordered, members.contiguous(), side="right").double()
    return float(((below + upto) / 2).mean() / len(others))


def true_positive_rate(members: Tensor, others: Tensor, rate: float) -> float:
    """The share of `members` above the lowest threshold that at most `rate` of `others` are above."""
    allowed = math.floor(rate * len(others) + 1e-9)
    threshold = others.sort(descending=True).values[min(allowed, len(others) - 1)]
    return float((members > threshold).double().mean())


def private_bound(epsilon: float, delta: float, rate: float) -> float:
    """The highest true-positive rate of any attack on an (epsilon, delta)-private model at the false-positive `rate`.

    Of the two inequalities of Kairouz et al. 2015, the stronger one.
    """
    first = math.exp(min(epsilon, 700)) * rate + delta
    second = 1 - math.exp(-epsilon) * (1 - delta - rate)
    return min(1.0, first, second)
