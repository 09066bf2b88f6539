"""The conformal scores. Each yields its options with the score that they make, for one to be chosen on tuning samples.

Shapes: N samples, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

from bigmodel_cli.core.registry import conformal_scores
from bigmodel_cli.insight.trust.conformal import Score, ranked

Choices = Iterator[tuple[dict[str, float], Score]]
PENALTIES = (0.001, 0.01, 0.1, 0.2, 0.5)
WEIGHTS = (0.02, 0.05, 0.1, 0.2, 0.4)


@conformal_scores.register("lac")
def least_ambiguous(shares: Tensor, labels: Tensor, level: float) -> Choices:
    """1 - p: the smallest sets on average (Sadinle et al. 2019), which may be empty."""
    yield {}, lambda p, u: 1 - p


@conformal_scores.register("aps")
def adaptive(shares: Tensor, labels: Tensor, level: float) -> Choices:
    """The probability of all likelier classes and a random part of the own: larger sets for harder samples.

    Romano et al. 2020.
    """

    def score(p: Tensor, u: Tensor) -> Tensor:
        return ranked(p)[1] + u * p

    yield {}, score


@conformal_scores.register("raps")
def regularised(shares: Tensor, labels: Tensor, level: float) -> Choices:
    """APS with a penalty for each class after the first few, chosen for small sets (Angelopoulos et al. 2021)."""
    places = ranked(shares)[0].gather(1, labels[:, None])[:, 0].sort().values
    first = int(places[min(len(places) - 1, math.ceil(level * len(places)))]) if len(places) else 1

    def with_penalty(penalty: float) -> Score:
        def score(p: Tensor, u: Tensor) -> Tensor:
            place, before = ranked(p)
            return before + u * p + penalty * (place - first).clamp(min=0)

        return score

    for penalty in PENALTIES:
        yield {"penalty": penalty, "free_classes": first}, with_penalty(penalty)


@conformal_scores.register("saps")
def sorted_adaptive(shares: Tensor, labels: Tensor, level: float) -> Choices:
    """The largest probability and a weight for each place after it, not the small probabilities (Huang et al. 2024)."""

    def with_weight(weight: float) -> Score:
        def score(p: Tensor, u: Tensor) -> Tensor:
            place, largest = ranked(p)[0], p.amax(1, keepdim=True)
            return (u * largest).where(place == 1, largest + (place - 2 + u) * weight)

        return score

    for weight in WEIGHTS:
        yield {"weight": weight}, with_weight(weight)
