"""Losses: each returns one value per *sample*; the task sums them and the engine divides.

Where the labels are (B,K), a loss of a sample is the mean over those that are known, which are not NaN.
Shapes: B batch, K classes or targets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from bigmodel_cli.core.registry import losses

PerSample = Callable[[Tensor, Tensor], Tensor]
"""logits (B,K) float, labels (B,) int64 or targets (B,K) float -> (B,) float."""


@losses.register(answers=("classes", "tokens", "items"))
def cross_entropy(*, label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0) -> PerSample:
    """-sum_k t_k log softmax(z)_k, with optional label smoothing.

    Label smoothing e makes t = (1-e) one-hot + e/K (Szegedy et al. 2015).
    """

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)

    return loss


@losses.register(answers=("classes", "numbers", "rating"), probabilities=False)
def mse() -> PerSample:
    """Mean squared error to the targets or, for classes, to the one-hot label: 1/K sum_k (z_k - t_k)^2."""

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        targets = labels if labels.dim() == 2 else F.one_hot(labels, logits.shape[1])
        return _mean_known((logits - _filled(logits, targets)).square(), targets)

    return loss


@losses.register(answers=("numbers", "rating"))
def mae() -> PerSample:
    """Mean absolute error: 1/K sum_k |z_k - t_k|; less sensitive to outliers than mse."""

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return _mean_known((logits - _filled(logits, targets)).abs(), targets)

    return loss


@losses.register(answers=("numbers", "rating"))
def huber(*, delta: Annotated[float, Field(gt=0)] = 1.0) -> PerSample:
    """Huber loss (1964): half the squared error up to `delta` (in standard deviations), then linear."""

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return _mean_known(F.huber_loss(logits, _filled(logits, targets), reduction="none", delta=delta), targets)

    return loss


@losses.register(answers=("labels",))
def binary_cross_entropy(*, label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0) -> PerSample:
    """Mean over the labels of -t log s(z) - (1-t) log(1 - s(z)), with optional smoothing of t towards 1/2.

    `--balance loss` weights the positives of each label by the ratio of negatives to positives.
    """

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        smooth = _filled(logits, targets) * (1 - label_smoothing) + label_smoothing / 2
        return _mean_known(F.binary_cross_entropy_with_logits(logits, smooth, reduction="none"), targets)

    return loss


def _filled(logits: Tensor, targets: Tensor) -> Tensor:
    """`targets` with 0 where they are unknown, so that no gradient becomes NaN."""
    return targets.nan_to_num().to(logits.dtype)


def _mean_known(values: Tensor, targets: Tensor) -> Tensor:
    """(B,) the mean of `values` (B,K) over the known targets; 0 where none is known."""
    if not targets.is_floating_point():
        return values.mean(1)
    known = ~targets.isnan()
    if targets.shape[1] == 1:
        return values.where(known, 0).squeeze(1)
    return values.where(known, 0).sum(1) / known.sum(1).clamp(min=1)
