"""Penalised linear classifiers on fixed features, fitted by a preconditioned L-BFGS: all classes or labels at once.

Shapes: N samples, D features, R = min(N, D) directions of their span, K outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Loss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(logits (N,K), answers) -> the loss of each sample (N,), and its gradient with respect to the logits (N,K)."""
SINGLE = 1e-6
"""The relative decrease at which an exact fit in float32 ends."""
LARGE = 10**8
"""Multiplications of one pass (N x R x K) from which an exact fit is in float32 too, at twice the speed."""
EXACT, ROUGH = 1e-10, 1e-3
"""The relative decrease of the objective at which a fit ends: for good, or, in float32, to compare penalties by."""


@dataclass(frozen=True)
class Basis:
    """The principal directions of features, along which their second moments are uncorrelated.

    Args:
        directions: (D,R) orthonormal.
        coordinates: (N,R) of the features.
        moments: (R,) mean square of each coordinate.
    """

    directions: Tensor
    coordinates: Tensor
    moments: Tensor


def principal(x: Tensor) -> Basis:
    """(N,D) features -> their principal directions. A penalised optimum lies in their span, with the same norm."""
    wide = x.shape[1] > len(x)
    values, vectors = torch.linalg.eigh(x @ x.T if wide else x.T @ x)  # ascending
    # The root of the rounding error of a product: a direction below it is noise.
    kept = values > values[-1] * torch.finfo(x.dtype).eps * max(x.shape)
    values, vectors = values[kept], vectors[:, kept]
    directions = torch.linalg.qr(x.T @ (vectors / values.sqrt())).Q if wide else vectors
    coordinates = x @ directions
    return Basis(directions, coordinates, coordinates.square().mean(0))


@dataclass
class Fit:
    """Minimises C sum_n w_n loss_n + |W|^2 / 2 over W (K,R) and a bias (K,) that is not penalised.

    Its variables are scaled by the curvature where nothing is known but the shares of the classes, so that penalties
    of many sizes, and directions of very different variance, take a few dozen passes. A later fit starts from the last.

    Args:
        coordinates: (N,R), and `moments` (R,) as in :class:`Basis`.
        answers: as `loss` takes them.
        weights: (N,) of the samples.
        bias: (K,) to begin with.
        shares: (K,) of the samples' weight that have each class or label, none 0 or 1.
    """

    coordinates: Tensor
    moments: Tensor
    answers: Tensor
    weights: Tensor
    shares: Tensor
    loss: Loss
    bias: Tensor
    iterations: int
    tolerance: float = EXACT

    def __post_init__(self) -> None:
        large = self.coordinates.numel() * len(self.shares) > LARGE
        self.kind = torch.float32 if large or self.tolerance > EXACT else torch.float64
        if large:  # float32 cannot tell smaller steps apart, and would try to a thousand times
            self.tolerance = max(self.tolerance, SINGLE)
        self.coordinates = self.coordinates.to(self.kind)
        self.solution = torch.zeros(len(self.moments) + 1, len(self.shares), dtype=torch.float64)
        self.solution[-1] = self.bias

    def __call__(self, strength: float) -> tuple[Tensor, Tensor]:
        """Weight (K,R) and bias (K,), float64, at the inverse regularisation strength C."""
        from scipy.optimize import minimize

        total = self.weights.sum().item()
        curvature = strength * total * self.shares * (1 - self.shares)  # (K,)
        penalty = torch.cat([torch.ones_like(self.moments), torch.zeros(1)])[:, None]  # (R+1,1); none of the bias
        moments = torch.cat([self.moments, torch.ones(1)])[:, None]
        scale = (curvature * moments + penalty).clamp(min=1e-12).rsqrt()  # (R+1,K)

        def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
            found = torch.from_numpy(flat).view_as(scale) * scale
            value, gradient = self._data(found)
            value = strength * value + (penalty * found.square()).sum().item() / 2
            gradient = (strength * gradient + penalty * found) * scale
            return value, gradient.flatten().numpy()

        result = minimize(
            objective,
            (self.solution / scale).flatten().numpy(),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": self.iterations, "maxcor": 10, "ftol": self.tolerance, "gtol": 0.0},
        )
        self.solution = torch.from_numpy(result.x).view_as(scale) * scale
        return self.solution[:-1].T.contiguous(), self.solution[-1].clone()

    def _data(self, found: Tensor) -> tuple[float, Tensor]:
        """The weighted loss of all samples, and its gradient (R+1,K)."""
        known = found.to(self.kind)
        losses, slopes = self.loss(torch.addmm(known[-1], self.coordinates, known[:-1]), self.answers)
        slopes *= self.weights.to(self.kind)[:, None]
        gradient = torch.cat([self.coordinates.T @ slopes, slopes.sum(0, keepdim=True)])
        return (losses.double() @ self.weights).item(), gradient.double()


def cross_entropy(logits: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
    """A :data:`Loss` of classes (N,)."""
    logs = F.log_softmax(logits, 1)
    losses = -logs.gather(1, answers[:, None])[:, 0]
    slopes = logs.exp_()
    slopes[torch.arange(len(answers)), answers] -= 1
    return losses, slopes


def binary_cross_entropy(logits: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
    """A :data:`Loss` of labels (N,K): 0, 1 or, where unknown, NaN."""
    known, target = ~answers.isnan(), answers.nan_to_num().to(logits.dtype)
    losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (losses * known).sum(1), (logits.sigmoid() - target) * known
