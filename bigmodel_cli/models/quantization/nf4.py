"""Frozen linear layers in 4-bit NormalFloat (Dettmers et al. 2023, "QLoRA: Efficient Finetuning of Quantized LLMs").

Plain torch, so that a run and its checkpoint are the same on every device and need no library. bitsandbytes has
GPU kernels, but on a CPU it may load code from the Hub. Shapes: R rows, C columns of a weight.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from bigmodel_cli.models.quantization.quantized_weights import (
    CODE,
    OFFSET,
    PACKED,
    SCALE,
    SHAPE,
    QuantizedWeight,
    pack_nibbles,
)

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""Quantiles of N(0, 1), scaled to [-1, 1], with an exact zero (appendix E): equally likely for normal weights."""
BLOCK, SCALE_BLOCK = 64, 256
"""Weights per scale; in double quantization, scales (at most) per second-level scale."""


def can_quantize(weight: Tensor) -> bool:
    """Whether `weight` divides into blocks."""
    return weight.numel() > 0 and weight.numel() % BLOCK == 0


def quantize_nf4(weight: Tensor, double: bool = False) -> dict[str, Tensor]:
    """Quantize `weight` (R,C) for :class:`QuantizedWeight`: 4 bits per weight and one scale per block of 64.

    fp32 scales make 4.5 bits per weight. With `double`, the scales are stored as int8 around their mean: 4.13 bits.
    """
    code = weight.new_tensor(NF4, dtype=torch.float32)
    blocks = weight.detach().float().reshape(-1, BLOCK)
    scale = blocks.abs().amax(1)
    # The clamp avoids 0 / 0 in a block of zeros, which becomes code 7: an exact zero.
    normalized = blocks / scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    nearest = torch.bucketize(normalized, (code[1:] + code[:-1]) / 2)
    packed = {PACKED: pack_nibbles(nearest.view(1, -1)), SHAPE: _shape(weight), CODE: code}
    return {**packed, **(_quantize_scales(scale) if double else {SCALE: scale[None]})}


def _quantize_scales(scale: Tensor) -> dict[str, Tensor]:
    """Quantize `scale` (G,) to int8 around its mean."""
    size = next(n for n in range(min(SCALE_BLOCK, len(scale)), 0, -1) if len(scale) % n == 0)
    mean = scale.mean()
    groups = (scale - mean).view(-1, size)
    steps = (groups.abs().amax(1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    numbers = (groups / steps[:, None]).round().to(torch.int8).view(1, -1)
    parts = {PACKED: numbers, SCALE: steps[None], SHAPE: _shape(scale[None]), OFFSET: mean}
    return {SCALE + name: part for name, part in parts.items()}


def _shape(weight: Tensor) -> Tensor:
    return torch.tensor(weight.shape, device=weight.device)  # on the same device: ranks exchange all parts together


class NF4Linear(nn.Module):
    """y = x W^T + scale * (x A^T) B^T + bias, with W stored in 4 bits and dequantized only for the product.

    Its tensors are named like those of a layer with a parametrized weight, so merging an adapter works the same way.
    """

    def __init__(self, layer: nn.Linear, double: bool, low_rank: nn.Module | None) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = layer.in_features, layer.out_features, layer.bias
        weight = nn.Module()
        weight.add_module("original", QuantizedWeight(quantize_nf4(layer.weight, double)))
        weight.add_module("0", low_rank)
        self.parametrizations = nn.Module()
        self.parametrizations.add_module("weight", weight)

    @property
    def packed(self) -> QuantizedWeight:
        return self.get_submodule("parametrizations.weight.original")  # type: ignore[return-value]

    @property
    def low_rank(self) -> Any:
        """The adapter (a (r,C), b (R,r), scale), or None."""
        return self.parametrizations.weight._modules["0"]  # type: ignore[union-attr]

    @property
    def weight(self) -> Tensor:
        """The dequantized weight (R,C), with the adapter merged in."""
        plain: Tensor = self.packed()
        return plain if self.low_rank is None else self.low_rank(plain)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        # The compiler decides for itself what to recompute.
        y = linear(x, self.packed) if torch.compiler.is_compiling() else _RecomputedLinear.apply(x, self.packed)
        adapter = self.low_rank
        if adapter is not None:
            y = y + adapter.scale.to(x.dtype) * F.linear(F.linear(x, adapter.a), adapter.b)
        return y if self.bias is None else y + self.bias.to(y.dtype)


def linear(x: Tensor, packed: QuantizedWeight) -> Tensor:
    """x W^T, in the dtype of `x`."""
    return F.linear(x, packed().to(x.dtype))


class _RecomputedLinear(torch.autograd.Function):
    """:func:`linear`, which dequantizes W again in the backward pass instead of saving it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: QuantizedWeight) -> Tensor:
        ctx.packed = packed
        return linear(x, packed)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ ctx.packed().to(grad.dtype), None


def count_parameters(model: nn.Module) -> int:
    """The number of parameters of `model`, including those stored in 4 bits."""
    packed = sum(m.in_features * m.out_features for m in model.modules() if isinstance(m, NF4Linear))
    return packed + sum(p.numel() for p in model.parameters())
