"""Two towers: a vector of the user and one of each item, whose dot product ranks (Yi et al. 2019).

Shapes: B batch, S items of a user, L window, I items, D width. Item numbers in histories start at 1; 0 is padding.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from bigmodel_cli.core.interactions import InteractionSpec
from bigmodel_cli.core.registry import models
from bigmodel_cli.models.layers.attributes import Attributes
from bigmodel_cli.models.layers.catalogue_loss import (
    Loss,
    batch_candidates,
    candidate_softmax,
    full_softmax,
    uniform_candidates,
)

PositiveInt = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Negatives = Annotated[
    Literal["batch", "all", "uniform"],
    Field(description="the batch's items with logQ correction, the whole catalogue, or random items"),
]
DEFAULTS: dict[str, Any] = {
    "optimizer": {"name": "adamw", "lr": 3e-3, "weight_decay": 0.01},
    "train": {"epochs": 40, "batch_size": 64, "clip_norm": 1.0, "eval_batch_size": 1024},
}


class TwoTower(nn.Module):
    """user (B,) and history (B,S) int64 -> scores (B,I); with `targets` (B,L) and a loss, the losses (B,L).

    The user's vector is made of their items so far, weighted by learned functions of how long ago each was, and of
    their attributes. So a user the model has never seen gets a vector too, from their history.
    """

    def __init__(
        self, spec: InteractionSpec, width: int, hidden: int, dropout: float, negatives: str, candidates: int
    ) -> None:
        super().__init__()
        self.context, self.negatives, self.candidates = spec.context, negatives, candidates
        self.token = nn.Embedding(spec.items + 1, width)
        self.user_attributes = Attributes(spec.user_columns, width // 4)
        self.item_attributes = Attributes(spec.item_columns, width // 4)
        self.lag = nn.Parameter(-torch.arange(spec.context)[:, None] / torch.tensor([2.0, 10.0, 1e6]))
        self.user_tower = nn.Sequential(
            nn.Linear(3 * width + self.user_attributes.width, hidden), nn.GELU(), nn.Dropout(dropout),
            nn.Linear(hidden, width),
        )  # fmt: skip
        self.item_tower = nn.Linear(self.item_attributes.width, width) if self.item_attributes.width else None
        self.bias = nn.Embedding(spec.items, 1)
        self.drop = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width)
        counts = torch.tensor(spec.item_counts, dtype=torch.float32) if spec.item_counts else torch.ones(spec.items)
        self.register_buffer("counts", counts + 1, persistent=False)
        nn.init.normal_(self.token.weight, std=width**-0.5)
        nn.init.zeros_(self.bias.weight)

    def forward(
        self,
        user: Tensor,
        history: Tensor,
        targets: Tensor | None = None,
        seen: Tensor | None = None,
        noise: Tensor | None = None,
        loss: Loss | None = None,
    ) -> Tensor:
        if targets is None or loss is None or seen is None or noise is None:
            return self.user_vectors(user, history) @ self.item_vectors().t()
        states = self._with_one(self._states(history, user))
        if self.negatives == "all":
            return full_softmax(states, targets, self.item_vectors(), loss)
        if self.negatives == "batch":
            ids, log_q = batch_candidates(targets, self.get_buffer("counts"), self.candidates, noise)
        else:
            ids, log_q = uniform_candidates(len(self.bias.weight), self.candidates, noise)
        own = self._items(targets.clamp(min=0))
        return candidate_softmax(states, targets, own, ids, self._items(ids), log_q, seen, loss)

    def user_vectors(self, user: Tensor, history: Tensor) -> Tensor:
        """(B,D+1): what the user's items so far and attributes say; the last number multiplies the item's bias."""
        length = (history > 0).sum(1)
        start = (length - self.context).clamp(min=0)
        at = start[:, None] + torch.arange(min(self.context, history.shape[1]), device=history.device)
        latest = torch.where(at < length[:, None], history.gather(1, at.clamp(max=history.shape[1] - 1)), 0)
        states = self._states(latest, user)
        last = ((latest > 0).sum(1) - 1).clamp(min=0)
        return self._with_one(states.gather(1, last[:, None, None].expand(-1, -1, states.shape[2]))[:, 0])

    def item_vectors(self) -> Tensor:
        """(I,D+1), the last number the item's bias."""
        return self._items(torch.arange(len(self.bias.weight), device=self.bias.weight.device))

    def _items(self, ids: Tensor) -> Tensor:
        vectors = self.token(ids + 1)
        if self.item_tower is not None:
            vectors = vectors + self.item_tower(self.item_attributes(ids))
        return torch.cat([vectors, self.bias(ids)], -1)

    def _states(self, history: Tensor, user: Tensor) -> Tensor:
        """(B,L,D): the user's vector after each item of `history` (B,L)."""
        b, length = history.shape
        x = self.drop(self.token(history))
        ago = torch.arange(length, device=x.device)
        ago = ago[:, None] - ago  # (L,L) how many items ago
        weight = self.lag[ago.clamp(min=0)].masked_fill((ago < 0)[..., None], float("-inf")).softmax(1)  # (L,L,3)
        pooled = torch.einsum("tsk,bsd->btkd", weight, x).flatten(2)
        about = self.user_attributes(user)[:, None].expand(b, length, -1)
        return self.norm(self.user_tower(torch.cat([pooled, about], -1)) + pooled.view(b, length, 3, -1).sum(2))

    def _with_one(self, states: Tensor) -> Tensor:
        return F.pad(states, (0, 1), value=1.0)


@models.register("two-tower", task="recommendation", head="user_tower.3", backbone_first="token",
                 grows=("token.weight", "bias.weight"), defaults=DEFAULTS)  # fmt: skip
def two_tower(
    spec: InteractionSpec,
    *,
    width: PositiveInt = 64,
    hidden: PositiveInt = 256,
    dropout: Fraction = 0.3,
    negatives: Negatives = "batch",
    candidates: Annotated[int, Field(gt=0, description="most items of a batch that serve as negatives")] = 4096,
) -> nn.Module:
    """A user tower over the history and an item tower, with in-batch negatives and logQ correction (Yi et al. 2019)."""
    return TwoTower(spec, width, hidden, dropout, negatives, candidates)
