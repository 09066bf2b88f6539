"""Muon for matrices and convolution filters. Shapes: O outputs, I inputs, H height, W width.

torch's own Muon takes only matrices.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_cli.optim.per_parameter import PerParameter

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan's: steep at zero, so that five steps are enough
STEPS = 5


class Muon(PerParameter):
    """Momentum with orthogonalized updates: w <- w - lr s (U V^T), for the momentum U S V^T (Jordan 2024).

    A filter (O,I,H,W) is treated as a matrix (O, I H W), as in Jordan's CIFAR-10 record.
    s = sqrt(max(1, O / (I H W))). Weight decay is decoupled, w <- w (1 - lr weight_decay), and momentum is Nesterov.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    def update(self, p: nn.Parameter, grad: Tensor, group: dict[str, Any]) -> None:
        lr, momentum, weight_decay = group["lr"], group["momentum"], group["weight_decay"]
        state = self.state[p]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(p)
        velocity = state["momentum_buffer"].lerp_(grad, 1 - momentum)
        step = orthogonalize(grad.lerp(velocity, momentum).flatten(1))
        scale = max(1.0, step.shape[0] / step.shape[1]) ** 0.5
        p.mul_(1 - lr * weight_decay).add_(step.view(p.shape), alpha=-lr * scale)


def orthogonalize(matrix: Tensor) -> Tensor:
    """Approximate U V^T of `matrix` = U S V^T by Newton-Schulz iteration; singular values end in 0.7..1.2.

    (O,I) -> (O,I), computed in bf16 on a GPU.
    """
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x.bfloat16() if x.is_cuda else x
    x = x / (x.norm() + 1e-7)
    for _ in range(STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).to(matrix.dtype)
