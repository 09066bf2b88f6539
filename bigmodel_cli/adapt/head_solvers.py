"""Exact solutions for a linear head on fixed features, whose answers are labels or numbers.

Shapes: N samples, M validation samples, D features, K outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bigmodel_cli.adapt.linear_fit import Fit, binary_cross_entropy, principal

Solution = tuple[Tensor, Tensor]
"""Weight (K,D) and bias (K,), float64."""


@dataclass(frozen=True)
class Solver:
    """Args:
    fit: (features (N,D), labels, their weights (N,), inverse regularization strength, iterations, K) -> solution.
    score: (val outputs (M,K), val labels) -> what to maximise, compared in order.
    known: val labels -> (M,) bool, whether the sample can be scored.
    """

    fit: Callable[[Tensor, Tensor, Tensor, float, int, int], Solution]
    score: Callable[[Tensor, Tensor], tuple[float, ...]]
    known: Callable[[Tensor], Tensor]


def _fit_labels(x: Tensor, y: Tensor, weights: Tensor, strength: float, iterations: int, outputs: int) -> Solution:
    """One logistic regression a label, all in one matrix. A label that all or no samples have gets a constant."""
    weights, known = weights.double(), ~y.isnan()
    shares = (weights @ y.double().nan_to_num()) / (weights @ known.double()).clamp(min=1e-12)
    weight, bias = x.new_zeros(outputs, x.shape[1]), torch.where(shares > 0.5, 30.0, -30.0).double()
    vary = (shares > 0) & (shares < 1)
    if vary.any():
        basis, some, loss = principal(x), shares[vary], binary_cross_entropy
        fit = Fit(basis.coordinates, basis.moments, y[:, vary], weights, some, loss, some.logit(), iterations)
        coefficients, bias[vary] = fit(strength)
        weight[vary] = coefficients @ basis.directions.T
    return weight, bias


def _score_labels(logits: Tensor, y: Tensor) -> tuple[float, ...]:
    known = ~y.isnan()
    losses = nn.functional.binary_cross_entropy_with_logits(logits, y.double().nan_to_num(), reduction="none")
    return (-losses[known].mean().item(),)


def _fit_numbers(x: Tensor, y: Tensor, weights: Tensor, strength: float, iterations: int, outputs: int) -> Solution:
    from sklearn.linear_model import Ridge

    fitted = Ridge(alpha=1 / strength).fit(x.numpy(), y.double().numpy(), weights.numpy())
    coefficients = torch.from_numpy(fitted.coef_).view(outputs, -1)
    return coefficients, torch.as_tensor(fitted.intercept_, dtype=coefficients.dtype).view(outputs)


def _score_numbers(outputs: Tensor, y: Tensor) -> tuple[float, ...]:
    return (-(outputs - y).square().mean().item(),)


SOLVERS = {
    "labels": Solver(_fit_labels, _score_labels, lambda y: ~y.isnan().all(1)),
    "numbers": Solver(_fit_numbers, _score_numbers, lambda y: ~y.isnan().any(1)),
}
"""By the kind of answer of the task: one logistic regression a label, or ridge regression. For classes see
logistic_regression.py."""
