"""Losses: each returns one value per *sample*; the task sums them and the engine divides.

Shapes: B batch, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from bigmodel_cli.core.registry import losses

PerSample = Callable[[Tensor, Tensor], Tensor]
"""logits (B,K) float, labels (B,) int64 or soft targets (B,K) -> (B,) float."""


@losses.register()
def cross_entropy(*, label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0) -> PerSample:
    """-sum_k t_k log softmax(z)_k, with optional label smoothing.

    Label smoothing e makes t = (1-e) one-hot + e/K (Szegedy et al. 2015).
    """

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)

    return loss


@losses.register()
def mse() -> PerSample:
    """Mean squared error between logits and one-hot label: 1/K sum_k (z_k - t_k)^2."""

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        targets = labels if labels.dim() == 2 else F.one_hot(labels, logits.shape[1])
        return (logits - targets.to(logits.dtype)).square().mean(1)

    return loss
