"""Deep and cross networks, version 2 (Wang et al. 2021), over users, items and their attributes. Shapes: B batch."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from bigmodel_cli.core.interactions import InteractionSpec
from bigmodel_cli.core.registry import models
from bigmodel_cli.models.layers.attributes import Attributes
from bigmodel_cli.models.layers.dropout import Dropout
from bigmodel_cli.models.layers.sharded_tables import table_plan

PositiveInt = Annotated[int, Field(gt=0)]
DEFAULTS: dict[str, Any] = {
    "loss": {"name": "mse"},
    "optimizer": {"name": "adamw", "lr": 4e-3, "weight_decay": 0.2},
    "train": {"epochs": 10, "batch_size": 2048, "eval_batch_size": 65536},
}


class DCN(nn.Module):
    """user, item (B,) int64 -> ratings (B,): cross layers ``x0 * (W x + b) + x`` and an MLP, in parallel."""

    def __init__(self, spec: InteractionSpec, width: int, cross: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.mean = spec.mean
        self.user, self.item = nn.Embedding(spec.users, width), nn.Embedding(spec.items, width)
        self.user_attributes = Attributes(spec.user_columns, width)
        self.item_attributes = Attributes(spec.item_columns, width)
        size = 2 * width + self.user_attributes.width + self.item_attributes.width
        self.cross = nn.ModuleList(nn.Linear(size, size) for _ in range(cross))
        self.deep = nn.Sequential(
            nn.Linear(size, hidden), nn.ReLU(), Dropout(dropout), nn.Linear(hidden, hidden), nn.ReLU(),
            Dropout(dropout),
        )  # fmt: skip
        self.head = nn.Linear(size + hidden, 1)
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=0.05)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        first = torch.cat(
            [self.user(user), self.item(item), self.user_attributes(user), self.item_attributes(item)], -1
        )
        x = first
        for layer in self.cross:
            x = first * layer(x) + x
        return self.mean + self.head(torch.cat([x, self.deep(first)], -1))[:, 0]  # type: ignore[no-any-return]


@models.register("dcn-v2", task="rating_prediction", head="head", backbone_first="user",
                 grows=("user.weight", "item.weight"),
                 tensor_plan=table_plan("user", "item"), defaults=DEFAULTS)  # fmt: skip
def dcn_v2(
    spec: InteractionSpec,
    *,
    width: PositiveInt = 16,
    cross: Annotated[int, Field(ge=1, le=8, description="cross layers")] = 2,
    hidden: PositiveInt = 128,
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3,
) -> nn.Module:
    """Cross layers and an MLP over users, items and their attributes: DCN-V2 (Wang et al. 2021)."""
    return DCN(spec, width, cross, hidden, dropout)
