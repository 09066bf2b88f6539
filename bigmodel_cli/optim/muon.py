"""Muon for matrices and convolution filters. Shapes: N matrices, O outputs, I inputs, H height, W width.

torch's own Muon takes only matrices, one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_cli.optim.per_parameter import PerParameter

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan's: steep at zero, so that five steps are enough
STEPS = 5
MAX_STACKED = 1 << 24  # elements, 64 MB: larger matrices fill a processor by themselves


class Muon(PerParameter):
    """Momentum with orthogonalized updates: w <- w - lr s (U V^T), for the momentum U S V^T (Jordan 2024).

    A filter (O,I,H,W) is treated as a matrix (O, I H W), as in Jordan's CIFAR-10 record.
    s = sqrt(max(1, O / (I H W))). Weight decay is decoupled, w <- w (1 - lr weight_decay), and momentum is Nesterov.
    Matrices of one shape are orthogonalized together.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    def update_all(self, given: list[tuple[nn.Parameter, Tensor]], group: dict[str, Any]) -> None:
        lr, momentum, weight_decay = group["lr"], group["momentum"], group["weight_decay"]
        for p, _ in given:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        params: list[Tensor] = [p for p, _ in given]
        grads = [grad for _, grad in given]
        velocities = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_lerp_(velocities, grads, 1 - momentum)
        torch._foreach_mul_(params, 1 - lr * weight_decay)
        for members in _stacks(params):
            matrices = torch.stack([grads[i].lerp(velocities[i], momentum).flatten(1) for i in members])
            scale = max(1.0, matrices.shape[1] / matrices.shape[2]) ** 0.5
            own = [params[i] for i in members]
            steps = [step.view(p.shape) for step, p in zip(orthogonalize(matrices), own, strict=True)]
            torch._foreach_add_(own, steps, alpha=-lr * scale)


def _stacks(params: list[Tensor]) -> Iterator[list[int]]:
    """The indices of `params` by the shape of their matrices, at most MAX_STACKED elements at a time."""
    alike: dict[tuple[Any, ...], list[int]] = {}
    for i, p in enumerate(params):
        alike.setdefault((len(p), p.numel(), p.device, p.dtype), []).append(i)
    for (_, size, *_), members in alike.items():
        most = max(MAX_STACKED // max(size, 1), 1)
        yield from (members[i : i + most] for i in range(0, len(members), most))


def orthogonalize(matrices: Tensor) -> Tensor:
    """Approximate U V^T of each matrix U S V^T by Newton-Schulz iteration; singular values end in 0.7..1.2.

    (N,O,I) -> (N,O,I), computed in bf16 on a GPU.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x.bfloat16() if x.is_cuda else x
    x = x / (torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)
