"""Self-attention over a user's items in time (Kang and McAuley 2018), with the blocks of ``gpt``.

Shapes: B batch, S items of a user, L window, I items, D width. Item numbers in histories start at 1; 0 is padding.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor, nn

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.interactions import InteractionSpec, NextItems
from bigmodel_cli.core.registry import models
from bigmodel_cli.models.gpt import Block, MLPKind, Norm, Position, Shape
from bigmodel_cli.models.layers.catalogue_loss import (
    candidate_gbce,
    candidate_softmax,
    full_softmax,
    uniform_candidates,
)
from bigmodel_cli.models.layers.dropout import Dropout
from bigmodel_cli.models.layers.history_window import latest_items
from bigmodel_cli.models.layers.rope import rope_tables
from bigmodel_cli.models.layers.sharded_tables import table_plan, whole_table

PositiveInt = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
DEFAULTS: dict[str, Any] = {
    "optimizer": {"name": "adamw", "lr": 2e-3, "betas": [0.9, 0.98], "weight_decay": 0.01},
    "train": {"epochs": 40, "batch_size": 32, "clip_norm": 1.0, "eval_batch_size": 1024},
}


class SASRec(nn.Module):
    """See :class:`RanksItems` in core/interactions.py.

    The user's number is not used: what they did is all that the model knows, so a new user needs no training.
    """

    def __init__(
        self,
        spec: InteractionSpec,
        layers: int,
        shape: Shape,
        position: Position,
        negatives: int | None,
        sparse: bool,
        calibration: float | None,
    ) -> None:
        super().__init__()
        self.window, self.negatives, self.calibration = spec.context, negatives, calibration
        self.token = nn.Embedding(spec.items + 1, shape.width, sparse=sparse)
        self.position = nn.Embedding(spec.context, shape.width) if position == "learned" else None
        self.drop = Dropout(shape.dropout)
        self.blocks = nn.ModuleList(Block(i, shape) for i in range(layers))
        self.norm = shape.make_norm()
        if position == "rope":
            cos, sin = rope_tables(spec.context, shape.width // shape.heads, 10_000.0)
            self.register_buffer("cos", cos, persistent=False)
            self.register_buffer("sin", sin, persistent=False)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, user: Tensor, history: Tensor, wanted: NextItems | None = None) -> Tensor:
        if wanted is None:
            return self.user_vectors(user, history) @ self.item_vectors().t()
        states, targets = self._states(history), wanted.targets
        if self.negatives is None:
            return full_softmax(states, targets, self.item_vectors(), wanted.loss)
        ids, log_q = uniform_candidates(len(self.token.weight) - 1, self.negatives, wanted.noise)
        own, vectors = self.token(targets.clamp(min=0) + 1), self.token(ids + 1)
        if self.calibration is not None:
            items, t = len(self.token.weight) - 1, self.calibration
            return candidate_gbce(states, targets, own, ids, vectors, wanted.seen, items, t)
        return candidate_softmax(states, targets, own, ids, vectors, log_q, wanted.seen, wanted.loss)

    def user_vectors(self, user: Tensor, history: Tensor) -> Tensor:
        """(B,D): the state after the latest item."""
        latest, last = latest_items(history, self.window)
        states = self._states(latest)
        return states.gather(1, last[:, None, None].expand(-1, -1, states.shape[2]))[:, 0]

    def item_vectors(self) -> Tensor:
        """(I,D)."""
        return whole_table(self.token)[1:]

    def _states(self, history: Tensor) -> Tensor:
        """(B,L,D): the state after each item of `history` (B,L). Padding comes last, so no item attends to it."""
        length = history.shape[1]
        x, rope = self.token(history), None
        if self.position is not None:
            x = x + self.position.weight[:length]
        else:
            cos, sin = self.get_buffer("cos")[:length], self.get_buffer("sin")[:length]
            rope = cos[..., None, None, :], sin[..., None, None, :]
        x = self.drop(x)
        for block in self.blocks:
            x = block(x, rope, None, None)
        return self.norm(x)  # type: ignore[no-any-return]


@models.register(task="recommendation", head="norm", backbone_first="token", grows=("token.weight",),
                 tensor_plan=table_plan("token"), defaults=DEFAULTS)  # fmt: skip
def sasrec(
    spec: InteractionSpec,
    *,
    layers: PositiveInt = 2,
    heads: PositiveInt = 2,
    width: PositiveInt = 64,
    inside: PositiveInt | None = None,
    position: Position = "rope",
    norm: Norm = "layer",
    mlp: MLPKind = "gelu",
    dropout: Fraction = 0.3,
    attention_dropout: Annotated[
        Fraction, Field(description="of the attention's weights; 0 keeps its fast kernel")
    ] = 0.0,
    negatives: Annotated[int, Field(gt=0, description="random negatives; null: softmax over all")] | None = None,
    objective: Annotated[
        Literal["softmax", "gbce"], Field(description="gbce: gSASRec's binary cross-entropy, with negatives")
    ] = "softmax",
    calibration: Annotated[float, Field(ge=0, le=1, description="t of gbce")] = 0.75,
    sparse: Annotated[bool, Field(description="gradients of the rows of a batch alone; rowwise-adagrad")] = False,
) -> nn.Module:
    """Self-attention over the items of a user, with the softmax over the whole catalogue (Kang and McAuley 2018).

    The softmax is what recent reproductions found best (Klenitskiy and Vasilev 2023); `negatives` estimates it for
    catalogues that are too large.

    Args:
        inside: width of the feed-forward layer; None: 4 D.

    Raises:
        InputError: the width does not divide into the heads, or what needs negatives has none.
    """
    if width % heads or (position == "rope" and (width // heads) % 2):
        raise InputError(f"width {width}, heads {heads}", "expected heads that divide the width (evenly for rope)")
    shape = Shape(width, heads, heads, inside or 4 * width, norm, 1e-5, mlp, True, dropout, attention_dropout)
    if sparse and negatives is None:
        raise InputError("model.sparse with a softmax over all items", "expected negatives", "model.negatives=1024")
    if objective == "gbce" and negatives is None:
        raise InputError("model.objective = gbce", "expected negatives", "--set model.negatives=256")
    t = calibration if objective == "gbce" else None
    return SASRec(spec, layers, shape, position, negatives, sparse, t)
