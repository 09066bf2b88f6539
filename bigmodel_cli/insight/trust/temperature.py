"""Temperature scaling: one number, fitted on the validation split, that makes probabilities fit how often they hold.

Shapes: N samples, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bigmodel_cli.core.errors import InputError

LOWEST, HIGHEST = 1e-3, 1e3
"""The range of temperatures; the ends are reached by outputs that are all right or all wrong."""
HALVINGS = 80


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature T that minimises the negative log-likelihood of softmax(logits / T) (Guo et al. 2017).

    The likelihood is convex in 1/T, so its derivative is bisected.

    Args:
        logits: (N,K), not divided by a temperature.
        labels: (N,) int64 in 0..K-1.

    Raises:
        InputError: there are no samples, or a logit is not finite.
    """
    if not len(labels) or not torch.isfinite(logits).all():
        raise InputError("no temperature can be fitted", "expected samples of known classes with finite outputs")
    z = logits.double()
    true = z.gather(1, labels[:, None])[:, 0]

    def slope(inverse: float) -> float:
        """The derivative of the mean negative log-likelihood by 1/T."""
        shares = (z * inverse).softmax(1)
        return float(((shares * z).sum(1) - true).mean())

    low, high = 1 / HIGHEST, 1 / LOWEST
    if slope(low) >= 0:
        return HIGHEST
    if slope(high) <= 0:
        return LOWEST
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 1 / (low * high) ** 0.5


def negative_log_likelihood(logits: Tensor, labels: Tensor) -> float:
    """The mean of -log softmax(logits) of the labels, in nats."""
    return float(-logits.double().log_softmax(1).gather(1, labels[:, None]).mean())
