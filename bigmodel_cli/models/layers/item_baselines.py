"""Baselines that are computed from co-occurrences in a moment: popularity, item-kNN and EASE.

Shapes: B batch, I items. `gram` (I,I) counts the users who have both items.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

NEIGHBOURS, SHRINK, EASE_L2 = 100, 10.0, 200.0


@dataclass(frozen=True)
class Score:
    """Indicators (B,I) of what users have -> scores (B,I)."""

    weights: Tensor

    @property
    def items(self) -> int:
        return self.weights.shape[-1]

    def __call__(self, held: Tensor) -> Tensor:
        if self.weights.dim() == 1:
            return self.weights.expand(len(held), -1)
        return held @ self.weights


@dataclass(frozen=True)
class Baseline:
    """A method by `name`; `how` says its settings, which are the usual ones and chosen on no data."""

    name: str
    how: str
    fit: Callable[[Tensor], Score]


def popularity(gram: Tensor) -> Score:
    """The number of users of each item."""
    return Score(gram.diagonal().clone())


def item_knn(gram: Tensor) -> Score:
    """Cosine similarity with shrinkage, of each item's nearest neighbours alone (Sarwar et al. 2001)."""
    norm = gram.diagonal().sqrt()
    similarity = gram / (norm[:, None] * norm + SHRINK)
    similarity.fill_diagonal_(0)
    nearest = similarity.topk(min(NEIGHBOURS, len(gram)), dim=0)
    return Score(torch.zeros_like(similarity).scatter_(0, nearest.indices, nearest.values))


def ease_weights(gram: Tensor, regularisation: float) -> Tensor:
    """(I,I) the weights from item (row) to item: -P_ij / P_jj with P the regularised inverse (Steck 2019)."""
    inverse = torch.linalg.inv(gram + regularisation * torch.eye(len(gram), dtype=gram.dtype))
    weights = -inverse / inverse.diagonal()
    weights.fill_diagonal_(0)
    return weights


BASELINES = (
    Baseline("popularity", "popularity counts train interactions", popularity),
    Baseline("item-kNN", f"item-kNN takes {NEIGHBOURS} neighbours by cosine, shrinkage {SHRINK:g}", item_knn),
    Baseline("EASE", f"EASE has L2 {EASE_L2:g}", lambda gram: Score(ease_weights(gram, EASE_L2))),
)
