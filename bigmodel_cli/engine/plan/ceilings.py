"""What this machine's CPU does at most, measured: matrix products, convolutions, attention, and passes over memory.

Each rate is of one operator by itself on made-up tensors, at a few sizes; none of the
models that are planned is run. The figures are kept in the cache folder, by machine.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from bigmodel_cli.core.errors import MachineError
from bigmodel_cli.core.recipe import PlacementSection, cache_root
from bigmodel_cli.engine import durable
from bigmodel_cli.engine.machine import cpu_flags
from bigmodel_cli.engine.placement import place
from bigmodel_cli.engine.plan.roofline import interpolate
from bigmodel_cli.engine.plan.trace import Op

VERSION = 1
SECONDS = 0.1
"""Of trying for each figure; about 80 of them."""
NARROW = (16, 64, 128, 256, 768, 2048)
NUMBERS = (1 << 14, 1 << 17, 1 << 20, 1 << 23)
"""Elements of a pass over memory: in the first cache, in the last one, in none."""
POOL = 1 << 27
"""Bytes that are more than a cache holds."""
aten = torch.ops.aten

Curve = list[list[float]]


@dataclass(frozen=True)
class Measured:
    """Ceilings of this machine; see :class:`bigmodel_cli.engine.plan.roofline.Ceilings`."""

    overhead: float
    curves: dict[str, Curve]
    """FLOP/s by the narrowest side, or bytes/s by bytes."""

    def arithmetic(self, op: Op, shards: int) -> float:
        name = op.name if op.kind in ("conv", "attention") else "mm"
        half = " bf16" if op.half and f"{name} bf16" in self.curves else ""
        return interpolate(self.curves[name + half], max(op.narrow, 1))

    def traffic(self, op: Op) -> float:
        name = op.name if op.kind == "memory" else "add"
        return interpolate(self.curves.get(ALIKE.get(name, name), self.curves["add"]), max(op.bytes, 1))


ALIKE = {
    "mul": "add", "sub": "add", "neg": "add", "add_": "add", "threshold_backward": "add", "relu": "add",
    "silu": "gelu", "silu_backward": "gelu_backward", "tanh": "gelu", "sigmoid": "gelu",
    "cat": "clone", "stack": "clone", "copy_": "clone", "_to_copy": "add",
}  # fmt: skip
"""Which measured operator stands for another; every other one is a plain pass, as add."""


def measured(threads: int) -> Measured:
    """The ceilings with `threads` threads, from the cache or measured now (about 15 s)."""
    made_from = (VERSION, cpu_flags()[0], platform.machine(), threads, str(torch.__version__))
    name = hashlib.sha256(repr(made_from).encode()).hexdigest()[:16]
    file = cache_root() / "ceilings" / f"{name}.json"
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        return Measured(float(kept["overhead"]), {k: [[*map(float, p)] for p in c] for k, c in kept["curves"].items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    before = torch.get_num_threads()
    place(PlacementSection(device="cpu", threads=threads))  # as a run has it: freed memory is used again
    try:
        found = measure()
    finally:
        torch.set_num_threads(before)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"overhead": found.overhead, "curves": found.curves})
        durable.replace(file, lambda temporary: temporary.write_text(text, encoding="utf-8"), lambda: len(text))
    except (OSError, MachineError):  # measured again the next time
        pass
    return found


def measure() -> Measured:
    """Measure every curve, with as many threads as torch now has."""
    tiny = torch.zeros(8)
    with torch.no_grad():
        overhead = _best(lambda: tiny + tiny)
        curves: dict[str, Curve] = {}
        for name, size, work, call in (*_products(), *_convolutions(), *_attention(), *_passes()):
            curves.setdefault(name, []).append([size, work / max(_best(call) - overhead, 1e-9)])
    return Measured(overhead, curves)


def _best(call: Callable[..., object]) -> float:
    """The least time of one call."""
    call()
    least, end = float("inf"), time.perf_counter() + SECONDS
    while True:
        clock = time.perf_counter()
        call()
        now = time.perf_counter()
        least = min(least, now - clock)
        if now > end:
            return least


Figure = tuple[str, float, float, Callable[..., Any]]
"""Name of the curve, place on it, work of a call, the call."""


def _products() -> Iterator[Figure]:
    """The three products of a linear layer of n x 768: forward, gradient of the input, gradient of the weight."""
    for dtype, suffix in ((torch.float32, ""), (torch.bfloat16, " bf16")):
        for n in NARROW:
            rows = max(512, min(2048, (1 << 26) // (n * 768)))
            shapes = ((rows, n), (768, n), (rows, 768))
            size = sum(math.prod(s) for s in shapes) * dtype.itemsize
            turn = _in_turn(lambda s=shapes, d=dtype: [torch.randn(one).to(d) for one in s], size)

            def call(turn: Any = turn) -> None:
                x, w, g = next(turn)
                x @ w.t()
                g @ w
                g.t() @ x

            yield f"mm{suffix}", n, 6.0 * rows * n * 768, call


def _in_turn(make: Callable[..., Any], size: float) -> Iterator[Any]:
    """Operands in turn from so many copies that no cache holds them: a step's were written long ago."""
    return itertools.cycle([make() for _ in range(max(1, min(8, int(POOL // size))))])


def _convolutions() -> Iterator[Figure]:
    """In channels-last, 3x3 and 1x1, by the fewer channels; maps shrink as channels grow, as networks have it."""
    for kernel, name in ((3, "convolution"), (1, "convolution_1x1")):
        for channels, side in ((1, 28), (3, 32), (12, 28), (32, 28), (64, 28), (128, 14), (256, 14), (512, 7)):
            batch, out = (64 if channels < 64 else 16), max(channels, 16)
            shape = ([1, 1], [kernel // 2] * 2, [1, 1], False, [0, 0], 1)

            def make(batch: int = batch, c: int = channels, s: int = side, o: int = out, k: int = kernel) -> Any:
                maps = [torch.randn(batch, n, s, s).contiguous(memory_format=torch.channels_last) for n in (c, o)]
                return [*maps, torch.randn(o, c, k, k).contiguous(memory_format=torch.channels_last)]

            turn = _in_turn(make, 4.0 * (batch * side**2 * (channels + out) + channels * out * kernel**2))
            work = 2.0 * batch * side**2 * out * channels * kernel**2
            back = [channels > 3, True, False]  # the first layer's input needs no gradient

            def forward(turn: Any = turn, shape: Any = shape) -> None:
                x, _, w = next(turn)
                aten.convolution(x, w, None, *shape)

            def backward(turn: Any = turn, shape: Any = shape, back: Any = back) -> None:
                x, y, w = next(turn)
                aten.convolution_backward(y, x, w, [0], *shape, back)

            yield name, channels, work, forward
            yield f"{name}_backward", channels, work * sum(back), backward


def _attention() -> Iterator[Figure]:
    """By the width of a head, over 256 tokens."""
    name = "_scaled_dot_product_flash_attention_for_cpu"
    forward, backward = getattr(aten, name), getattr(aten, name + "_backward")
    for width in (16, 32, 64, 128):
        q, k, v = (torch.randn(4, 8, 256, width) for _ in range(3))
        out, lse = forward(q, k, v, 0.0, True)
        work = 4.0 * 4 * 8 * 256 * 256 * width
        yield name, width, work, lambda q=q, k=k, v=v: forward(q, k, v, 0.0, True)
        yield (
            name + "_backward", width, 2.5 * work,
            lambda q=q, k=k, v=v, out=out, lse=lse: backward(out, q, k, v, out, lse, 0.0, True),
        )  # fmt: skip


def _passes() -> Iterator[Figure]:
    """Operators bound by memory; the bytes are counted as the trace counts them.

    The larger tensors are taken in turn from a pool that no cache holds: in a step, what an
    operator reads was written by others, most of it long ago.
    """
    weight = torch.ones(512)
    for n in NUMBERS:
        one = 4.0 * n
        turn = _in_turn(lambda n=n: (torch.randn(n // 512, 512), torch.randn(n // 512, 512)), 2 * one)
        _, mean, deviation = aten.native_layer_norm(next(turn)[0], [512], weight, weight, 1e-5)
        ids = torch.randint(4096, (n // 512,))
        table = torch.randn(4096, 512)
        calls: dict[str, tuple[int, Callable[..., Any]]] = {
            "add": (3, lambda x, y: aten.add(x, y)),
            "clone": (2, lambda x, y: x.view(-1, 8, 64).transpose(0, 1).contiguous()),
            "sum": (1, lambda x, y: x.sum(0)),
            "pow": (2, lambda x, y: x.pow(2)),
            "gelu": (2, lambda x, y: aten.gelu(x, approximate="tanh")),
            "gelu_backward": (3, lambda x, y: aten.gelu_backward(x, y, approximate="tanh")),
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
            yield name, passes * one, passes * one, lambda c=call, t=turn: c(*next(t))
        yield "_fused_adamw_", 7 * one, 7 * one, _adamw(n)
    yield from _map_passes()


def _map_passes() -> Iterator[Figure]:
    """Over maps of a network of convolutions, channels-last."""
    pool2d = aten.max_pool2d_with_indices
    for channels, side in ((64, 7), (64, 28), (32, 112)):
        w, zero = torch.ones(channels), torch.zeros(channels)
        size = 16 * channels * side**2 * 4.0
        shape = (16, channels, side, side)
        turn = _in_turn(
            lambda s=shape: [torch.randn(s).contiguous(memory_format=torch.channels_last) for _ in "xy"], 2 * size
        )
        first = next(turn)[0]
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
            # The same numbers as they lie in memory, taken for channels-first: eight times as slow.
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
            yield name, bytes_, bytes_, lambda c=call, t=turn: c(*next(t))


def _adamw(numbers: int) -> Callable[..., object]:
    parameter = torch.nn.Parameter(torch.zeros(numbers))
    parameter.grad = torch.zeros(numbers)
    optimizer = torch.optim.AdamW([parameter], fused=True)

    def step() -> None:
        with torch.enable_grad():
            optimizer.step()

    return step
