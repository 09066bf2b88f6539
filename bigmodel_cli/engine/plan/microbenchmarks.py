"""Microbenchmarks of a CPU: matrix products, convolutions, attention, and operators bound by memory.

Each operator runs by itself on synthetic tensors of a few sizes. The planned model is never run.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional as F

MATMUL_WIDTHS = (16, 64, 128, 256, 768, 2048)
PASS_ELEMENTS = (1 << 14, 1 << 17, 1 << 20, 1 << 23)
"""Elements of a pass over memory: sizes that fit the first cache, the last one, and none."""
COPIES = 4
"""Copies of operands and results that are cycled through."""
CACHE_EXCEEDING_BYTES = 1 << 27
"""More bytes than any cache holds."""
REFERENCE_SIZE = {"conv": 14, "attention": 256}
"""The map side and the number of tokens at which the curves by channels and by head width are measured."""
aten = torch.ops.aten

Microbenchmark = tuple[str, float, float, Callable[..., Any]]
"""The name of the curve, the position on it, the work of a call (FLOPs or bytes), and the call."""


def microbenchmarks() -> Iterator[Microbenchmark]:
    for generator in (_products, _convolutions, _attention, _memory_passes):
        yield from generator()


def _products() -> Iterator[Microbenchmark]:
    """The three products of a linear layer of n x 768: forward, gradient of the input, gradient of the weight."""
    for dtype, suffix in ((torch.float32, ""), (torch.bfloat16, " bf16")):
        for n in MATMUL_WIDTHS:
            rows = max(512, min(2048, (1 << 26) // (n * 768)))
            shapes = ((rows, n), (768, n), (rows, 768))
            size = sum(math.prod(s) for s in shapes) * dtype.itemsize
            operands = _cycle_operands(
                lambda s=shapes, d=dtype: [torch.randn(element_bytes).to(d) for element_bytes in s], size
            )

            def call(operands: Any = operands) -> Any:
                x, w, g = next(operands)
                return x @ w.t(), g @ w, g.t() @ x

            yield f"mm{suffix}", n, 6.0 * rows * n * 768, call
            bias = torch.randn(768, dtype=dtype)  # it is broadcast over the rows first, in a separate pass
            yield (
                f"addmm{suffix}", n, 2.0 * rows * n * 768,
                lambda t=operands, b=bias: (lambda x, w, _: torch.addmm(b, x, w.t()))(*next(t)),
            )  # fmt: skip


def _cycle_operands(make: Callable[..., Any], size: float) -> Iterator[Any]:
    """Cycle through enough copies of the operands that no cache holds them, as in a step."""
    return itertools.cycle([make() for _ in range(max(1, min(COPIES, int(CACHE_EXCEEDING_BYTES // size))))])


def _convolutions() -> Iterator[Microbenchmark]:
    """Channels-last convolutions: 3x3 and 1x1 by the number of channels, and 3x3 by the side of the map."""
    for kernel, name in ((3, "convolution"), (1, "convolution_1x1")):
        for channels in (1, 3, 12, 32, 64, 128, 256, 512):
            yield from _convolution(
                name, channels, channels, kernel, REFERENCE_SIZE["conv"], 64 if channels < 64 else 16
            )
    for side in (2, 4, 7, REFERENCE_SIZE["conv"], 28):
        yield from _convolution("convolution{} by side", side, 256, 3, side, 64 if side < 14 else 16)


def _convolution(
    name: str, position: int, channels: int, kernel: int, side: int, batch: int
) -> Iterator[Microbenchmark]:
    """Both passes of one layer at `position` on the curves `name`, in which {} stands for "" or "_backward"."""
    out = max(channels, 16)
    shape = ([1, 1], [kernel // 2] * 2, [1, 1], False, [0, 0], 1)

    def make() -> Any:
        shapes = (batch, channels, side, side), (batch, out, side, side), (out, channels, kernel, kernel)
        return [torch.randn(element_bytes).contiguous(memory_format=torch.channels_last) for element_bytes in shapes]

    operands = _cycle_operands(make, 4.0 * (batch * side**2 * (channels + out) + channels * out * kernel**2))
    work = 2.0 * batch * side**2 * out * channels * kernel**2
    back = [channels > 3, True, False]  # the first layer's input needs no gradient

    def forward() -> Any:
        x, _, w = next(operands)
        return aten.convolution(x, w, None, *shape)

    def backward() -> Any:
        x, y, w = next(operands)
        return aten.convolution_backward(y, x, w, [0], *shape, back)

    name = name if "{}" in name else name + "{}"
    yield name.format(""), position, work, forward
    yield name.format("_backward"), position, work * sum(back), backward


def _attention() -> Iterator[Microbenchmark]:
    """Attention by the width of a head, and by the number of tokens."""
    name = "_scaled_dot_product_flash_attention_for_cpu"
    for width in (16, 32, 64, 128):
        yield from _attention_of(name + "{}", width, width, REFERENCE_SIZE["attention"])
    for tokens in (32, 64, REFERENCE_SIZE["attention"], 1024):
        yield from _attention_of(name + "{} by side", tokens, 64, tokens)


def _attention_of(name: str, position: int, width: int, tokens: int) -> Iterator[Microbenchmark]:
    forward, backward = (getattr(aten, name.partition("{}")[0] + end) for end in ("", "_backward"))
    heads = 32 * REFERENCE_SIZE["attention"] // tokens  # as many tokens in all
    q, k, v = (torch.randn(heads // 4, 4, tokens, width) for _ in range(3))
    out, lse = forward(q, k, v, 0.0, True)
    work = 4.0 * heads * tokens**2 * width
    yield name.format(""), position, work, lambda: forward(q, k, v, 0.0, True)
    yield name.format("_backward"), position, 2.5 * work, lambda: backward(out, q, k, v, out, lse, 0.0, True)


def _memory_passes() -> Iterator[Microbenchmark]:
    """Operators bound by memory, with bytes counted as in the trace.

    Large tensors are cycled through a pool that no cache holds: in a step, most inputs of an operator
    were written long before.
    """
    weight = torch.ones(512)
    for n in PASS_ELEMENTS:
        element_bytes = 4.0 * n
        operands = _cycle_operands(
            lambda n=n: (torch.randn(n // 512, 512), torch.randn(n // 512, 512)), 2 * element_bytes
        )
        _, mean, deviation = aten.native_layer_norm(next(operands)[0], [512], weight, weight, 1e-5)
        ids = torch.randint(4096, (n // 512,))
        table = torch.randn(4096, 512)
        calls: dict[str, tuple[int, Callable[..., Any]]] = {
            "add": (3, lambda x, y: aten.add(x, y)),
            "clone": (2, lambda x, y: x.view(-1, 8, 64).transpose(0, 1).contiguous()),
            "sum": (1, lambda x, y: x.sum(0)),
            "pow": (2, lambda x, y: x.pow(2)),
            "gelu": (2, lambda x, y: aten.gelu(x)),
            "gelu_backward": (3, lambda x, y: aten.gelu_backward(x, y)),
            "gelu_tanh": (2, lambda x, y: aten.gelu(x, approximate="tanh")),
            "gelu_tanh_backward": (3, lambda x, y: aten.gelu_backward(x, y, approximate="tanh")),
            "_log_softmax": (2, lambda x, y: aten._log_softmax(x, 1, False)),
            "_log_softmax_backward_data": (3, lambda x, y: aten._log_softmax_backward_data(x, y, 1, torch.float32)),
            "native_layer_norm": (2, lambda x, y: aten.native_layer_norm(x, [512], weight, weight, 1e-5)),
            "native_layer_norm_backward": (
                3,
                lambda x, y, m=mean, d=deviation: aten.native_layer_norm_backward(
                    y, x, [512], m, d, weight, weight, [True] * 3
                ),
            ),
            "embedding": (2, lambda x, y, i=ids, t=table: F.embedding(i, t)),
        }  # fmt: skip
        for name, (passes, call) in calls.items():
            yield name, passes * element_bytes, passes * element_bytes, lambda c=call, t=operands: c(*next(t))
        yield "_fused_adamw_", 7 * element_bytes, 7 * element_bytes, _adamw(n)
    yield from _map_passes()


def _map_passes() -> Iterator[Microbenchmark]:
    """Operators over the channels-last maps of a convolutional network."""
    pool2d = aten.max_pool2d_with_indices
    for channels, side in ((64, 7), (64, 28), (32, 112)):
        w, zero = torch.ones(channels), torch.zeros(channels)
        size = 16 * channels * side**2 * 4.0
        shape = (16, channels, side, side)
        operands = _cycle_operands(
            lambda s=shape: [torch.randn(s).contiguous(memory_format=torch.channels_last) for _ in "xy"], 2 * size
        )
        first = next(operands)[0]
        _, mean, inverse = aten.native_batch_norm(first, w, w, zero.clone(), w.clone(), True, 0.1, 1e-5)
        out, places = pool2d(first, [2, 2], [2, 2])
        pooled = 12.0 * out.numel()
        calls: dict[str, tuple[float, Callable[..., Any]]] = {
            "native_batch_norm": (
                2 * size,
                lambda x, y, w=w, z=zero: aten.native_batch_norm(x, w, w, z.clone(), w.clone(), True, 0.1, 1e-5),
            ),
            "native_batch_norm_backward": (
                3 * size,
                lambda x, y, w=w, m=mean, i=inverse: aten.native_batch_norm_backward(
                    y, x, w, w, w, m, i, True, 1e-5, [True] * 3
                ),
            ),
            "max_pool2d_with_indices": (size + pooled, lambda x, y: pool2d(x, [2, 2], [2, 2])),
            # The same memory viewed as channels-first: eight times as slow.
            "max_pool2d_with_indices_nchw": (
                size + pooled,
                lambda x, y, s=shape: pool2d(x.permute(0, 2, 3, 1).view(s), [2, 2], [2, 2]),
            ),
            "max_pool2d_with_indices_backward": (
                2 * size + pooled,
                lambda x, y, o=out, p=places: aten.max_pool2d_with_indices_backward(
                    o, x, [2, 2], [2, 2], [0, 0], [1, 1], False, p
                ),
            ),
        }
        for name, (bytes_, call) in calls.items():
            yield name, bytes_, bytes_, lambda c=call, t=operands: c(*next(t))


def _adamw(numbers: int) -> Callable[..., object]:
    parameter = torch.nn.Parameter(torch.zeros(numbers))
    parameter.grad = torch.zeros(numbers)
    optimizer = torch.optim.AdamW([parameter], fused=True)

    def step() -> None:
        with torch.enable_grad():
            optimizer.step()

    return step
