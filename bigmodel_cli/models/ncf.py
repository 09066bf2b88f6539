"""Neural collaborative filtering (He et al. 2017): a product of embeddings beside an MLP over them. Shapes: B batch."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from bigmodel_cli.core.interactions import InteractionSpec
from bigmodel_cli.core.registry import models
from bigmodel_cli.models.layers.dropout import Dropout
from bigmodel_cli.models.layers.sharded_tables import table_plan

PositiveInt = Annotated[int, Field(gt=0)]
DEFAULTS: dict[str, Any] = {
    "loss": {"name": "mse"},
    "optimizer": {"name": "adamw", "lr": 3e-3, "weight_decay": 0.6},
    "train": {"epochs": 10, "batch_size": 2048, "eval_batch_size": 65536},
}


class NeuMF(nn.Module):
    """user, item (B,) int64 -> ratings (B,)."""

    def __init__(self, spec: InteractionSpec, width: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.mean, self.width = spec.mean, width
        self.user = nn.Embedding(spec.users, 2 * width + 1)  # for the product, for the MLP, and a bias
        self.item = nn.Embedding(spec.items, 2 * width + 1)
        sizes = [2 * width // 2**i for i in range(layers + 1)]
        hidden = [
            nn.Sequential(nn.Linear(a, max(b, 1)), nn.ReLU(), Dropout(dropout))
            for a, b in zip([2 * width, *(max(s, 1) for s in sizes[1:-1])], sizes[1:], strict=True)
        ]
        self.mlp = nn.Sequential(*hidden)
        self.head = nn.Linear(width + max(sizes[-1], 1), 1)
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=0.05)
            with torch.no_grad():
                table.weight[:, -1] = 0

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        (p, a, b_user), (q, b, b_item) = (
            x.split((self.width, self.width, 1), -1) for x in (self.user(user), self.item(item))
        )
        joined = torch.cat([p * q, self.mlp(torch.cat([a, b], -1))], -1)
        return self.mean + (self.head(joined) + b_user + b_item)[:, 0]


@models.register(task="rating_prediction", head="head", backbone_first="user", grows=("user.weight", "item.weight"),
                 tensor_plan=table_plan("user", "item"), defaults=DEFAULTS)  # fmt: skip
def ncf(
    spec: InteractionSpec,
    *,
    width: PositiveInt = 32,
    layers: Annotated[int, Field(ge=1, le=8)] = 3,
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2,
) -> nn.Module:
    """A product of user and item embeddings beside an MLP over them: NeuMF (He et al. 2017)."""
    return NeuMF(spec, width, layers, dropout)
