"""Weights and inputs rounded as int8 arithmetic rounds them, while training goes on in fp32 (Jacob et al. 2017).

The gradient passes the rounding as if it were not there (Bengio et al. 2013, straight through).
A weight is a parametrization, as an adapter is, so that whoever reads ``module.weight`` gets the rounded one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

EPSILON = 1e-8
MOMENTUM = 0.1
"""Of the moving range of a layer's inputs."""


def round_rows(weight: Tensor, levels: Tensor) -> Tensor:
    """`weight` (R, ...) on the grid of -levels..levels whole steps, each row's largest value its last step.

    Multiplying a row by a factor multiplies its grid as well: BatchNorm that is folded in later changes nothing.
    """
    most = int(levels)
    scale = weight.detach().flatten(1).abs().amax(1).clamp(min=EPSILON) / most
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -most, most)


class RoundedRows(nn.Module):
    """W (R, ...) -> the same, rounded."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.register_buffer("levels", torch.tensor(levels))
        self.levels: Tensor

    def forward(self, weight: Tensor) -> Tensor:
        return round_rows(weight, self.levels)


def round_weights(module: nn.Module, levels: int) -> None:
    """Round ``module.weight`` from now on; what trains is ``parametrizations.weight.original``."""
    rounding = RoundedRows(levels).to(next(module.parameters()).device)
    parametrize.register_parametrization(module, "weight", rounding)


def round_inputs(module: nn.Module, span: Tensor) -> None:
    """Round the first input of `module` to 256 steps over `span` (2,), its lowest and highest value.

    `span` follows the inputs in training, in place; as long as it is empty nothing is rounded.
    """

    def rounded(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, *rest = inputs
        if layer.training:
            with torch.no_grad():
                now = _span(x)
                span.copy_(torch.where(span[1] > span[0], span.lerp(now, MOMENTUM), now))
        scale = ((span[1] - span[0]) / 255).clamp(min=EPSILON)
        zero = (-span[0] / scale).round().clamp(0, 255).to(torch.int32)
        steps = torch.fake_quantize_per_tensor_affine(x.float(), scale, zero, 0, 255).to(x.dtype)
        return (torch.where(span[1] > span[0], steps, x), *rest)

    module.register_forward_pre_hook(rounded)


def _span(x: Tensor) -> Tensor:
    """(2,): the lowest and the highest value of `x`, zero always within."""
    low, high = torch.aminmax(x.detach().float())
    return torch.stack((low.clamp(max=0), high.clamp(min=0)))
