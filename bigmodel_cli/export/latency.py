"""Latency of an export and its source, measured alternately so that background load affects both.

Each turn is a pause, an untimed call, and several timed ones: after a call, the threads of onnxruntime spin for 20 to
50 ms and would take cores from the other. Beside it a ResNet-18 in torch took 8.8 ms after a pause of 10 ms (2 cores),
and 5.0 after 50 ms or more, as alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from bigmodel_cli.core.processes.call_limit import bounded

BATCHES = (1, 32)
WARM_UP, MIN_CALLS, MAX_CALLS, CALLS_PER_TURN = 2, 5, 500, 5
"""Warm-up calls; minimum and maximum number of timed calls; timed calls per turn."""
PAUSE = 0.1
"""Seconds before a turn, at most a fifth of the total time."""


def measure_latency(ways: Mapping[str, tuple[Callable[..., object], Sequence[Any]]], seconds: float) -> dict[str, Any]:
    """p50 and p95 in milliseconds, and samples per second, of each function at each of BATCHES.

    Args:
        ways: name -> function and its inputs (tensors or arrays), which are repeated to fill a batch.
        seconds: total time for each batch size; each function gets at least MIN_CALLS calls.
    """
    found: dict[str, Any] = {"threads": torch.get_num_threads(), **{name: {} for name in ways}}
    with torch.inference_mode():
        for size in BATCHES:
            calls = [(name, call, [_repeat_to(x, size) for x in inputs]) for name, (call, inputs) in ways.items()]
            for name, times in _timed(calls, seconds).items():
                marks = torch.tensor([0.5, 0.95], dtype=torch.float64)
                p50, p95 = torch.tensor(times, dtype=torch.float64).quantile(marks).tolist()
                figures = {"p50_ms": p50 * 1e3, "p95_ms": p95 * 1e3, "per_second": size / p50, "calls": len(times)}
                found[name][str(size)] = figures
    return found


def _timed(calls: Sequence[tuple[str, Callable[..., object], Sequence[Any]]], seconds: float) -> dict[str, list[float]]:
    """The seconds of each call, measured in turns."""
    for _ in range(WARM_UP):
        for _, call, inputs in calls:
            with bounded():
                call(*inputs)
    taken: dict[str, list[float]] = {name: [] for name, _, _ in calls}
    end, timed = time.perf_counter() + seconds, 0
    while timed < MIN_CALLS or (timed < MAX_CALLS and time.perf_counter() < end):
        timed += CALLS_PER_TURN
        for name, call, inputs in calls:
            time.sleep(min(PAUSE, seconds / 5))
            with bounded():  # around a turn, so that no timed call pays for it
                call(*inputs)
                for _ in range(CALLS_PER_TURN):
                    clock = time.perf_counter()
                    call(*inputs)
                    taken[name].append(time.perf_counter() - clock)
    return taken


def _repeat_to(x: Any, size: int) -> Any:
    """`size` samples of `x`, repeated if there are fewer."""
    return x[[i % len(x) for i in range(size)]]
