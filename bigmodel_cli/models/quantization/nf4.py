"""Frozen linear layers in 4-bit NormalFloat (Dettmers et al. 2023, "QLoRA: Efficient Finetuning of Quantized LLMs").

In plain torch, so that a run and its checkpoint are the same on every device and need no library. bitsandbytes has
kernels for GPUs, but on a CPU it may load code from a hub. Shapes: R rows, C columns of a weight.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from bigmodel_cli.models.quantization.quantized_weights import CODE, OFFSET, PACKED, SCALE, SHAPE, Packed, two_a_byte

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""Quantiles of N(0, 1), scaled to [-1, 1], with an exact zero (appendix E): each is as likely for normal weights."""
BLOCK, SCALES = 64, 256
"""How many weights share a scale; how many scales, at most, share one of their own in double quantization."""


def fits(weight: Tensor) -> bool:
    """Whether `weight` can be cut into blocks."""
    return weight.numel() > 0 and weight.numel() % BLOCK == 0


def nf4(weight: Tensor, double: bool = False) -> dict[str, Tensor]:
    """The parts of `weight` (R,C), for :class:`Packed`: 4 bits a weight and a scale for each block of 64.

    The scales take 32 bits, which makes 4.5 a weight; with `double` 8 and a bit (int8 around their mean): 4.13.
    """
    code = weight.new_tensor(NF4, dtype=torch.float32)
    blocks = weight.detach().float().reshape(-1, BLOCK)
    scale = blocks.abs().amax(1)
    # A block of zeros divides nothing by zero, and is code 7: an exact zero.
    shares = blocks / scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    nearest = torch.bucketize(shares, (code[1:] + code[:-1]) / 2)
    packed = {PACKED: two_a_byte(nearest.view(1, -1)), SHAPE: _shape(weight), CODE: code}
    return {**packed, **(_eight_bit(scale) if double else {SCALE: scale[None]})}


def _eight_bit(scale: Tensor) -> dict[str, Tensor]:
    """The parts of `scale` (G,) as int8 around its mean."""
    share = next(n for n in range(min(SCALES, len(scale)), 0, -1) if len(scale) % n == 0)
    mean = scale.mean()
    groups = (scale - mean).view(-1, share)
    steps = (groups.abs().amax(1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    numbers = (groups / steps[:, None]).round().to(torch.int8).view(1, -1)
    parts = {PACKED: numbers, SCALE: steps[None], SHAPE: _shape(scale[None]), OFFSET: mean}
    return {SCALE + name: part for name, part in parts.items()}


def _shape(weight: Tensor) -> Tensor:
    return torch.tensor(weight.shape, device=weight.device)  # where the other parts are: ranks exchange them together


class NF4Linear(nn.Module):
    """y = x W^T + scale * (x A^T) B^T + bias, with W in 4 bits: whole only while a product with it is taken.

    Its tensors have the names of a layer with a parametrized weight: merging an adapter is the same for both.
    """

    def __init__(self, layer: nn.Linear, double: bool, low_rank: nn.Module | None) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = layer.in_features, layer.out_features, layer.bias
        held = nn.Module()
        held.add_module("original", Packed(nf4(layer.weight, double)))
        held.add_module("0", low_rank)
        self.parametrizations = nn.Module()
        self.parametrizations.add_module("weight", held)

    @property
    def packed(self) -> Packed:
        return self.get_submodule("parametrizations.weight.original")  # type: ignore[return-value]

    @property
    def low_rank(self) -> Any:
        """The adapter (a (r,C), b (R,r), scale) or None."""
        return self.parametrizations.weight._modules["0"]  # type: ignore[union-attr]

    @property
    def weight(self) -> Tensor:
        """(R,C), with the adapter in it, for whoever reads it."""
        whole: Tensor = self.packed()
        return whole if self.low_rank is None else self.low_rank(whole)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        # A compiler decides itself what to compute again.
        y = product(x, self.packed) if torch.compiler.is_compiling() else _Product.apply(x, self.packed)
        added = self.low_rank
        if added is not None:
            y = y + added.scale.to(x.dtype) * F.linear(F.linear(x, added.a), added.b)
        return y if self.bias is None else y + self.bias.to(y.dtype)


def product(x: Tensor, packed: Packed) -> Tensor:
    """x W^T, in the type of `x`."""
    return F.linear(x, packed().to(x.dtype))


class _Product(torch.autograd.Function):
    """:func:`product`, with W unpacked again for the backward pass: nobody keeps it in between."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Packed) -> Tensor:
        ctx.packed = packed
        return product(x, packed)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ ctx.packed().to(grad.dtype), None


def parameters(model: nn.Module) -> int:
    """How many parameters `model` has, those in 4 bits included."""
    packed = sum(m.in_features * m.out_features for m in model.modules() if isinstance(m, NF4Linear))
    return packed + sum(p.numel() for p in model.parameters())
