"""Convolutions that compute what torch's do by quicker kernels, where torch's choice for a CPU is slow.

:func:`own_convolutions` switches them all; here are the depthwise ones. The gradient of a kernel wider than 3 takes
oneDNN's kernel for general groups: 20 times as slow as the depthwise one. So it is put together from strips 3 columns
wide. The sums are the same, in another order. In bf16 all is left to torch, where ``precision: auto`` finds it slow:
with quick kernels, all of EfficientNet-Lite0 fine-tuned on flowers in bf16 was 2.7 points behind fp32.
Shapes: B batch, C channels, H, W the input map, y, x the output map, K, L the kernel.
"""

from __future__ import annotations

import functools
import platform
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import is_parametrized
from torch.overrides import TorchFunctionMode

from bigmodel_cli.engine.device.small_map_conv import dense_small_maps

STRIP = 3  # the widest kernel for whose gradient oneDNN has a depthwise kernel
Pair = tuple[int, int]


def own_convolutions(model: nn.Module, enabled: bool) -> None:
    """Switch the convolutions of `model` to quicker forms, or back; parameters, names and values stay."""
    dense_small_maps(model, enabled)
    known = torch.backends.mkldnn.is_available() and platform.machine().lower() in ("x86_64", "amd64")
    for module in model.modules():
        kind: Any = type(module)
        if enabled and known and _is_eligible(module):
            module.__class__ = _quick_kind(kind)
        elif not enabled and kind.__bases__[0] is _QuickDepthwise:
            module.__class__ = kind.__bases__[1]


def _is_eligible(module: nn.Module) -> bool:
    if not isinstance(module, nn.Conv2d) or isinstance(module, _QuickDepthwise) or is_parametrized(module):
        return False  # torch takes a parametrized class apart by its first base
    depthwise = 1 < module.groups == module.in_channels == module.out_channels
    return depthwise and module.kernel_size[1] > STRIP


class _QuickDepthwise(nn.Conv2d):
    """A depthwise convolution with the backward pass of this module; mixed into any class of convolutions."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return super().forward(x)
        with _OwnBackward():  # the class may pad by itself, as timm's do
            return super().forward(x)


@functools.cache
def _quick_kind(kind: Any) -> Any:
    """`kind`, quick. Its name stays, by which others may know a layer."""
    return type(kind.__name__, (_QuickDepthwise, kind), {})


class _OwnBackward(TorchFunctionMode):
    """Has ``torch.conv2d`` take the backward pass of this module where it is quicker."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.conv2d and len(args) == 7 and _is_slow(*args):
            x, weight, bias, stride, padding, _, _ = args
            return _Depthwise.apply(x, weight, bias, tuple(stride), tuple(padding))
        return func(*args, **(kwargs or {}))


def _is_slow(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
) -> bool:
    if x.device.type != "cpu" or x.dim() != 4 or isinstance(padding, str) or max(dilation) > 1 or weight.shape[1] != 1:
        return False
    if torch.is_autocast_enabled("cpu") or x.dtype != torch.float32:
        return False
    slow = _in_strips(weight.shape[3], stride[1])
    return slow and groups == weight.shape[0] and x.is_contiguous(memory_format=torch.channels_last)


def _in_strips(width: int, stride: int) -> bool:
    """Whether a kernel's gradient is put together from strips, each of which begins at a multiple of the stride."""
    return width > STRIP >= stride and (width - STRIP) % stride == 0


class _Depthwise(torch.autograd.Function):
    """The convolution of x (B,C,H,W), channels-last, with weight (C,1,K,L)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return torch.conv2d(x, weight, bias, stride, padding, 1, len(weight))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        grad = grads[0].contiguous(memory_format=torch.channels_last)
        to_x = to_weight = to_bias = None
        if ctx.needs_input_grad[0]:
            to_x = _gradient(grad, x, weight, ctx.stride, ctx.padding, 0)
        if ctx.needs_input_grad[1]:
            to_weight = _weight_gradient(grad, x, weight, ctx.stride, ctx.padding)
        if ctx.needs_input_grad[2]:
            to_bias = grad.sum((0, 2, 3))
        return to_x, to_weight, to_bias, None, None


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
    width, step = weight.shape[3], stride[1]
    x = F.pad(x, (padding[1], padding[1], padding[0], padding[0])).contiguous(memory_format=torch.channels_last)
    outputs, strips, done = (x.shape[3] - STRIP) // step + 1, [], 0
    while done < width:
        start = min(done // step * step, width - STRIP)
        # With zeros on its left, a gradient meets the columns of x that the kernel's columns from `start` on do.
        moved = F.pad(grad, (start // step, outputs - grad.shape[3] - start // step))
        moved = moved.contiguous(memory_format=torch.channels_last)
        strip = _gradient(moved, x, weight[..., :STRIP].contiguous(), stride, (0, 0), 1)
        strips.append(strip[..., done - start :])
        done = start + STRIP
    return torch.cat(strips, 3)


def _gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair, which: int) -> Tensor:
    """torch's gradient of x (`which` 0) or of the weight (1)."""
    mask = [which == 0, which == 1, False]
    groups = len(weight)
    found = torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, [1, 1], False, [0, 0], groups, mask
    )
    return found[which]  # type: ignore[no-any-return]
