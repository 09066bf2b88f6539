"""Fake quantization: round weights and inputs as int8 would, while training in fp32 (Jacob et al. 2017).

Gradients pass through the rounding unchanged (the straight-through estimator, Bengio et al. 2013).
Weights use a parametrization, like adapters, so that code reading ``module.weight`` gets the rounded weight.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

EPSILON = 1e-8
MOMENTUM = 0.1
"""Of the moving average of a layer's input range."""


def fake_quantize_rows(weight: Tensor, levels: Tensor) -> Tensor:
    """Round `weight` (R, ...) per row to the integers -levels..levels times the row's scale (symmetric).

    Scaling a row scales its grid too, so folding BatchNorm in later changes nothing.
    """
    most = int(levels)
    scale = weight.detach().flatten(1).abs().amax(1).clamp(min=EPSILON) / most
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -most, most)


class FakeQuantizeRows(nn.Module):
    """W (R, ...) -> W, rounded."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.register_buffer("levels", torch.tensor(levels))
        self.levels: Tensor

    def forward(self, weight: Tensor) -> Tensor:
        return fake_quantize_rows(weight, self.levels)


def fake_quantize_weights(module: nn.Module, levels: int) -> None:
    """Fake-quantize ``module.weight``; ``parametrizations.weight.original`` is what trains."""
    rounding = FakeQuantizeRows(levels).to(next(module.parameters()).device)
    parametrize.register_parametrization(module, "weight", rounding)


def fake_quantize_inputs(module: nn.Module, span: Tensor) -> None:
    """Round the first input of `module` to 256 steps over `span` (2,), its lowest and highest value.

    In training, `span` is updated in place as a moving average of the inputs' range. While it is empty, nothing
    is rounded.
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
    """(2,): the lowest and highest value of `x`, extended to include zero."""
    low, high = torch.aminmax(x.detach().float())
    return torch.stack((low.clamp(max=0), high.clamp(min=0)))
