"""Metrics of ratings and rankings.

Shapes: N samples (users, or ratings), R held-out items of a user, K recommended items, best first. `rank` (N,R) is the
place of each held-out item in the whole catalogue without what the user has seen, from 1; 0 is padding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bigmodel_cli.core.registry import metrics
from bigmodel_cli.metrics.intervals import Outputs, Statistic, ratio_of

SHOWN = 20
"""K: how many recommended items a ranking task outputs."""
RATED, RANKED = ("squared", "absolute", "count"), ("rank",)


@metrics.register(better="min", needs=RATED)
def rmse(out: Outputs) -> Statistic:
    """Root of the mean squared error of the predicted ratings."""
    mean = ratio_of(out["squared"], out["count"])
    return lambda weights: mean(weights).sqrt()


@metrics.register(better="min", needs=RATED)
def mae(out: Outputs) -> Statistic:
    """Mean absolute error of the predicted ratings."""
    return ratio_of(out["absolute"], out["count"])


@metrics.register("hit_rate_5", better="max", share=True, needs=RANKED, k=5)
@metrics.register("hit_rate_10", better="max", share=True, needs=RANKED, k=10)
@metrics.register("hit_rate_20", better="max", share=True, needs=RANKED, k=20)
def hit_rate(out: Outputs, k: int) -> Tensor:
    """Fraction of users with a held-out item among the K items ranked first."""
    return _within(out["rank"], k).any(1)


@metrics.register("recall_10", better="max", share=True, needs=RANKED, k=10)
@metrics.register("recall_20", better="max", share=True, needs=RANKED, k=20)
def recall(out: Outputs, k: int) -> Tensor:
    """Fraction of a user's held-out items among the K items ranked first, averaged over users."""
    return _within(out["rank"], k).sum(1) / (out["rank"] > 0).sum(1).clamp(min=1)


@metrics.register("ndcg_5", better="max", needs=RANKED, k=5)
@metrics.register("ndcg_10", better="max", needs=RANKED, k=10)
@metrics.register("ndcg_20", better="max", needs=RANKED, k=20)
def ndcg(out: Outputs, k: int) -> Tensor:
    """Discounted gain 1/log2(rank + 1) within K, over the best possible one (Jarvelin and Kekalainen 2002)."""
    rank: Tensor = out["rank"]
    gain = torch.where(_within(rank, k), 1 / (rank.double() + 1).log2(), 0.0).sum(1)
    ideal = (1 / torch.arange(2, k + 2, dtype=torch.float64, device=rank.device).log2()).cumsum(0)
    held = (rank > 0).sum(1).clamp(min=1, max=k)
    return gain / ideal[held - 1]


@metrics.register(better="max", needs=RANKED)
def mrr(out: Outputs) -> Tensor:
    """Mean of 1/rank of the held-out item that is ranked first, over the whole catalogue."""
    rank: Tensor = out["rank"]
    return torch.where(rank > 0, 1 / rank.double().clamp(min=1), 0.0).amax(1)


@metrics.register(better="max", share=True, needs=("top", "items"))
def coverage_10(out: Outputs) -> float:
    """Fraction of the catalogue among the ten items recommended to any user."""
    top: Tensor = out["top"][:, :10]
    return len(top[top >= 0].unique()) / float(out["items"][0])


@metrics.register(better="min", needs=("top_count", "history_count"))
def popularity_bias_10(out: Outputs) -> Statistic:
    """Mean train interactions of the ten recommended items, over those of the users' own items; 1 is unbiased."""
    top, own = out["top_count"].double(), out["history_count"].double()
    return lambda weights: (weights @ top) / (weights @ own).clamp(min=1e-12)


def _within(rank: Tensor, k: int) -> Tensor:
    return (rank > 0) & (rank <= k)
