"""EASE: a linear item-to-item model in closed form (Steck 2019, "Embarrassingly Shallow Autoencoders").

Shapes: B batch, S items of a user, L window, I items, U users. Item numbers in histories start at 1; 0 is padding.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.interactions import InteractionSpec, NextItems
from bigmodel_cli.core.registry import models
from bigmodel_cli.core.sources import HistorySource
from bigmodel_cli.core.types import Source
from bigmodel_cli.models.layers.catalogue_loss import full_softmax
from bigmodel_cli.models.layers.item_baselines import ease_weights

MOST_ITEMS = 40_000  # a square matrix of them takes 6.4 GB in fp32, and twice that while it is inverted
USERS_AT_ONCE = 4096


class EASE(nn.Module):
    """See :class:`RanksItems` in core/interactions.py. Scores sum the weights from each item of the history."""

    solves = True

    def __init__(self, spec: InteractionSpec, regularisation: float) -> None:
        super().__init__()
        self.users, self.regularisation = spec.users, regularisation
        self.token = nn.Embedding(spec.items + 1, spec.items)
        nn.init.zeros_(self.token.weight)

    def forward(self, user: Tensor, history: Tensor, wanted: NextItems | None = None) -> Tensor:
        if wanted is None:
            held = torch.zeros(history.shape[0], len(self.token.weight), device=history.device)
            return held.scatter_(1, history, 1.0)[:, 1:] @ self.token.weight[1:]
        scores = self.token(history)
        states = (scores * (history > 0)[..., None]).cumsum(1)
        every = torch.eye(scores.shape[-1], device=scores.device)
        return full_softmax(states, wanted.targets, every, wanted.loss)

    @torch.no_grad()
    def solve(self, train: Source) -> str:
        """Weights that predict each item of a user from the others, with an L2 penalty and a zero diagonal."""
        assert isinstance(train, HistorySource)
        items = len(self.token.weight) - 1
        gram = torch.zeros(items, items)
        for users in torch.arange(self.users).split(USERS_AT_ONCE):
            held = torch.zeros(len(users), items + 1).scatter_(1, train.trained(users), 1.0)[:, 1:]
            gram += held.t() @ held
        self.token.weight[1:] = ease_weights(gram, self.regularisation)
        return f"solved in closed form over {items:,} items"


@models.register(task="recommendation", head="token", backbone_first="token")
def ease(
    spec: InteractionSpec,
    *,
    regularisation: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 200.0,
) -> nn.Module:
    """A linear item-to-item model, solved in closed form without training steps (Steck 2019).

    Raises:
        InputError: the catalogue is too large for a square matrix of it.
    """
    if spec.items > MOST_ITEMS:
        raise InputError(f"ease over {spec.items:,} items", f"expected at most {MOST_ITEMS:,}", "two-tower or sasrec")
    return EASE(spec, regularisation)
