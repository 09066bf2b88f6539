"""The roofline ceilings of this machine's CPU: measured with ``microbenchmarks.py``, and cached by machine."""

from __future__ import annotations

import hashlib
import json
import platform
import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch

from bigmodel_cli.core.errors import MachineError
from bigmodel_cli.core.files import atomic_files
from bigmodel_cli.core.recipe import PlacementSection, cache_root
from bigmodel_cli.engine.device.hardware import cpu_info
from bigmodel_cli.engine.device.placement import choose_placement
from bigmodel_cli.engine.device.process import configure_process
from bigmodel_cli.engine.plan.microbenchmarks import COPIES, REFERENCE_SIZE, microbenchmarks
from bigmodel_cli.engine.plan.roofline import interpolate
from bigmodel_cli.engine.plan.trace import Op

VERSION = 2
MIN_SECONDS, MIN_CALLS = 0.1, 7
"""The minimum time and the minimum calls for each of about 110 microbenchmarks."""
CHAIN_LENGTH = 64
"""Operators in the chain that measures the dispatch overhead."""

Curve = list[list[float]]


@dataclass(frozen=True)
class MeasuredCeilings:
    """Measured ceilings; see :class:`bigmodel_cli.engine.plan.roofline.Ceilings`."""

    overhead: float
    curves: dict[str, Curve]
    """FLOP/s by the smallest dimension, bytes/s by bytes; "NAME by side": FLOP/s by the map's side or the tokens."""

    def arithmetic(self, op: Op, shards: int) -> float:
        name = op.name if op.name in self.curves else "mm"
        half = " bf16" if op.half and f"{name} bf16" in self.curves else ""
        rate = interpolate(self.curves[name + half], max(op.min_dim, 1))
        sides = self.curves.get(f"{name} by side")
        if sides is None:
            return rate
        return rate * interpolate(sides, max(op.side, 1)) / interpolate(sides, REFERENCE_SIZE[op.kind])

    def traffic(self, op: Op) -> float:
        name = op.name if op.kind == "memory" else "add"
        return interpolate(self.curves.get(PROXIES.get(name, name), self.curves["add"]), max(op.bytes, 1))


PROXIES = {
    "mul": "add", "sub": "add", "neg": "add", "add_": "add", "threshold_backward": "add", "relu": "add",
    "silu": "gelu", "silu_backward": "gelu_backward", "sigmoid": "gelu", "tanh": "gelu_tanh",
    "cat": "clone", "stack": "clone", "copy_": "clone", "_to_copy": "add",
}  # fmt: skip
"""The measured operator that stands for another one; operators not listed are treated as add."""


def cpu_ceilings(threads: int) -> MeasuredCeilings:
    """The ceilings with `threads` threads, from the cache or measured now, which takes about 20 s."""
    made_from = (VERSION, cpu_info()[0], platform.machine(), threads, str(torch.__version__))
    name = hashlib.sha256(repr(made_from).encode()).hexdigest()[:16]
    file = cache_root() / "ceilings" / f"{name}.json"
    try:
        cached = json.loads(file.read_text(encoding="utf-8"))
        return MeasuredCeilings(
            float(cached["overhead"]), {k: [[*map(float, p)] for p in c] for k, c in cached["curves"].items()}
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    before = torch.get_num_threads()
    # As in a run: freed memory is reused.
    configure_process(choose_placement(PlacementSection(device="cpu", threads=threads)))
    try:
        found = measure_ceilings()
    finally:
        torch.set_num_threads(before)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"overhead": found.overhead, "curves": found.curves})
        atomic_files.replace(file, lambda temporary: temporary.write_text(text, encoding="utf-8"), lambda: len(text))
    except (OSError, MachineError):  # without a cache they are measured again the next time
        pass
    return found


def measure_ceilings() -> MeasuredCeilings:
    """Measure every curve with torch's current number of threads."""
    tiny = torch.zeros(8)
    with torch.no_grad():
        dispatch_seconds = _median_seconds(lambda: tiny + tiny)
        curves: dict[str, Curve] = {}
        for name, size, work, call in microbenchmarks():
            curves.setdefault(name, []).append([size, work / max(_median_seconds(call) - dispatch_seconds, 1e-9)])
    return MeasuredCeilings(_median_seconds(_chain) / (2 * CHAIN_LENGTH), curves)


def _chain() -> None:
    """CHAIN_LENGTH tiny operators, forward and backward, whose time is the overhead of dispatcher and autograd."""
    x = first = torch.zeros(8, requires_grad=True)
    for _ in range(CHAIN_LENGTH):
        x = x + 1.0
    x.sum().backward()
    assert first.grad is not None


def _median_seconds(call: Callable[..., object]) -> float:
    """The median time of one call: in a step, which is a sum of calls, the minimum of each would be too optimistic.

    The last results are kept alive, as a step keeps its activations, so that outputs go to memory that was not
    written just before. The first calls do not count: the first access to a page is slower than later ones.
    """
    cached: deque[object] = deque(maxlen=COPIES)
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < 2 * COPIES + MIN_CALLS or time.perf_counter() < begin + MIN_SECONDS:
        clock = time.perf_counter()
        cached.append(call())
        times.append(time.perf_counter() - clock)
    return statistics.median(times[2 * COPIES :])
