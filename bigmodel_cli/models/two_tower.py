"""Two towers: a vector of the user and one of each item, whose dot product ranks (Yi et al. 2019).

Shapes: B batch, S items of a user, L window, I items, D width. Item numbers in histories start at 1; 0 is padding.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.interactions import InteractionSpec, NextItems
from bigmodel_cli.core.registry import models
from bigmodel_cli.models.layers.attributes import Attributes
from bigmodel_cli.models.layers.catalogue_loss import (
    batch_candidates,
    candidate_softmax,
    full_softmax,
    uniform_candidates,
)
from bigmodel_cli.models.layers.dropout import Dropout
from bigmodel_cli.models.layers.history_window import latest_items
from bigmodel_cli.models.layers.sharded_tables import table_plan

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
    """See :class:`RanksItems` in core/interactions.py.

    The user's vector is made of their items so far, weighted by learned functions of how long ago each was, and of
    their attributes. So a user the model has never seen gets a vector too, from their history.
    """

    def __init__(
        self,
        spec: InteractionSpec,
        width: int,
        hidden: int,
        dropout: float,
        negatives: str,
        candidates: int,
        sparse: bool,
    ) -> None:
        super().__init__()
        self.window, self.negatives, self.candidates = spec.context, negatives, candidates
        self.token = nn.Embedding(spec.items + 1, width, sparse=sparse)
        self.user_attributes = Attributes(spec.user_columns, width // 4)
        self.item_attributes = Attributes(spec.item_columns, width // 4)
        self.lag = nn.Parameter(-torch.arange(spec.context)[:, None] / torch.tensor([2.0, 10.0, 1e6]))
        self.user_tower = nn.Sequential(
            nn.Linear(3 * width + self.user_attributes.width, hidden), nn.GELU(), Dropout(dropout),
            nn.Linear(hidden, width),
        )  # fmt: skip
        self.item_tower = nn.Linear(self.item_attributes.width, width) if self.item_attributes.width else None
        self.bias = nn.Embedding(spec.items, 1)
        self.drop = Dropout(dropout)
        self.norm = nn.LayerNorm(width)
        counts = torch.tensor(spec.item_counts, dtype=torch.float32) if spec.item_counts else torch.ones(spec.items)
        self.register_buffer("counts", counts + 1, persistent=False)
        nn.init.normal_(self.token.weight, std=width**-0.5)
        nn.init.zeros_(self.bias.weight)

    def forward(self, user: Tensor, history: Tensor, wanted: NextItems | None = None) -> Tensor:
        if wanted is None:
            return self.user_vectors(user, history) @ self.item_vectors().t()
        states, targets = self._with_one(self._states(history, user)), wanted.targets
        if self.negatives == "all":
            return full_softmax(states, targets, self.item_vectors(), wanted.loss)
        if self.negatives == "batch":
            ids, log_q = batch_candidates(targets, self.get_buffer("counts"), self.candidates, wanted.noise)
        else:
            ids, log_q = uniform_candidates(len(self.bias.weight), self.candidates, wanted.noise)
        own = self._items(targets.clamp(min=0))
        return candidate_softmax(states, targets, own, ids, self._items(ids), log_q, wanted.seen, wanted.loss)

    def user_vectors(self, user: Tensor, history: Tensor) -> Tensor:
        """(B,D+1): what the user's items so far and attributes say; the last number multiplies the item's bias."""
        latest, last = latest_items(history, self.window)
        ago = last[:, None] - torch.arange(self.window, device=history.device)  # (B,W) how many items ago
        weight = self.lag[ago.clamp(min=0)].masked_fill((ago < 0)[..., None], float("-inf")).softmax(1)  # (B,W,3)
        pooled = torch.einsum("bsk,bsd->bkd", weight, self.drop(self.token(latest))).flatten(1)
        return self._with_one(self._tower(pooled, self.user_attributes(user)))

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
        return self._tower(pooled, self.user_attributes(user)[:, None].expand(b, length, -1))

    def _tower(self, pooled: Tensor, about: Tensor) -> Tensor:
        """(...,D) from the pooled items (...,3D) and the attributes (...,A) of the user."""
        added = pooled.unflatten(-1, (3, -1)).sum(-2)
        return self.norm(self.user_tower(torch.cat([pooled, about], -1)) + added)  # type: ignore[no-any-return]

    def _with_one(self, states: Tensor) -> Tensor:
        return F.pad(states, (0, 1), value=1.0)


@models.register("two-tower", task="recommendation", head="user_tower.3", backbone_first="token",
                 grows=("token.weight", "bias.weight"),
                 tensor_plan=table_plan("token", "bias"), defaults=DEFAULTS)  # fmt: skip
def two_tower(
    spec: InteractionSpec,
    *,
    width: PositiveInt = 64,
    hidden: PositiveInt = 128,
    dropout: Fraction = 0.3,
    negatives: Negatives = "batch",
    candidates: Annotated[int, Field(gt=0, description="most items of a batch that serve as negatives")] = 4096,
    sparse: Annotated[bool, Field(description="gradients of the rows of a batch alone; rowwise-adagrad")] = False,
) -> nn.Module:
    """A user tower over the history and an item tower, with in-batch negatives and logQ correction (Yi et al. 2019).

    Raises:
        InputError: sparse gradients without sampling.
    """
    if sparse and negatives == "all":
        raise InputError("model.sparse with a softmax over all items", "expected model.negatives = batch or uniform")
    return TwoTower(spec, width, hidden, dropout, negatives, candidates, sparse)
