"""Convolutions over maps so small that every output depends on every input, computed as one matrix product.

A kernel of the size of its map is a linear layer, as the first one of timm's VGG over 7x7 maps: the gradient of its
weights took oneDNN 4.6 s a step on one core in channels-last form, and takes 0.6 s as a product.

A 3x3 convolution spends more than half of its work on padding on a 2x2 map, and eight ninths on a 1x1 map.
The last stages of a ResNet on 28x28 images have such maps: oneDNN's kernels for them took half of a training
step on a 2-core CPU. Weights and state dict are the same; the sums are computed in another order.
Shapes: B batch, C input and O output channels, H, W the input map.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def dense_small_maps(model: nn.Module, enabled: bool) -> None:
    """Switch the plain convolutions of `model` to matrix products on small maps, or back.

    The class of the module is swapped, as torch's parametrizations do: parameters,
    names and hooks stay. Export and compilation see an ordinary convolution.
    """
    old, new = (nn.Conv2d, SmallMapConv2d) if enabled else (SmallMapConv2d, nn.Conv2d)
    for module in model.modules():
        if type(module) is old and (_is_same(module) or _may_cover_map(module)):
            module.__class__ = new


def _is_same(conv: nn.Conv2d) -> bool:
    """Whether an odd square kernel is padded so that the map keeps its size, but for the stride."""
    k = conv.kernel_size[0]
    square = conv.kernel_size == (k, k) and conv.stride[0] == conv.stride[1] and conv.padding_mode == "zeros"
    return square and k % 2 == 1 and k > 1 and conv.padding == (k // 2,) * 2 and conv.groups == 1 == conv.dilation[0]


def _may_cover_map(conv: nn.Conv2d) -> bool:
    return conv.padding == (0, 0) and conv.dilation == (1, 1) and conv.groups == 1


class SmallMapConv2d(nn.Conv2d):
    """``nn.Conv2d`` that is fast on maps of at most (k + 1)/2 per side with an odd square kernel and "same" padding,
    and on maps of the kernel's size without padding."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or torch.compiler.is_compiling():
            return super().forward(x)
        if self.padding == (0, 0):
            return _linear(x, self.weight, self.bias) if x.shape[2:] == self.kernel_size else super().forward(x)
        if max(x.shape[2:]) > self.kernel_size[0] // 2 + 1:
            return super().forward(x)
        y: Tensor = _Dense.apply(x, self.weight, self.stride[0])
        return y if self.bias is None else y + self.bias.to(y.dtype).view(1, -1, 1, 1)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution (B,O,1,1) of a map with a kernel of its size. Channels come last, as they do in memory."""
    flat, matrix = (t.permute(0, 2, 3, 1).flatten(1) for t in (x, weight))
    return F.linear(flat, matrix, bias)[:, :, None, None]


class _Dense(torch.autograd.Function):
    """The product with its backward pass: autograd would allocate a full-size kernel gradient for each slice."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        device_type = x.device.type
        dtype = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else x.dtype
        b, c, h, w = x.shape
        o, pad = weight.shape[0], weight.shape[2] // 2
        rows, columns = (h - 1) // stride + 1, (w - 1) // stride + 1
        # The part of the kernel that covers the map, for each output position.
        windows = [
            (r, q, slice(pad - r * stride, pad - r * stride + h), slice(pad - q * stride, pad - q * stride + w))
            for r in range(rows)
            for q in range(columns)
        ]
        matrix = torch.empty(rows, columns, o, h, w, c, dtype=dtype, device=x.device)
        for r, q, tall, wide in windows:
            matrix[r, q].copy_(weight[:, :, tall, wide].permute(0, 2, 3, 1))
        matrix = matrix.view(rows * columns * o, h * w * c)
        flat = x.permute(0, 2, 3, 1).reshape(b, -1).to(dtype)
        ctx.save_for_backward(flat, matrix, weight)
        ctx.windows, ctx.shape, ctx.dtype = windows, (rows, columns, o, h, w, c), x.dtype
        return (flat @ matrix.t()).view(b, rows, columns, o).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        flat, matrix, weight = ctx.saved_tensors
        _, _, _, h, w, c = ctx.shape
        grad = grads[0].permute(0, 2, 3, 1).reshape(len(flat), -1).to(matrix.dtype)
        to_x = to_weight = None
        if ctx.needs_input_grad[0]:
            to_x = (grad @ matrix).view(-1, h, w, c).permute(0, 3, 1, 2).to(ctx.dtype)
        if ctx.needs_input_grad[1]:
            by_place = (grad.t() @ flat).view(ctx.shape)
            to_weight = torch.zeros_like(weight)
            for r, q, tall, wide in ctx.windows:
                to_weight[:, :, tall, wide] += by_place[r, q].permute(0, 3, 1, 2)
        return to_x, to_weight, None
