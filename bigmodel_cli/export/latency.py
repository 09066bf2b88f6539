"""How long an answer takes: the export and its source in turns, so that a busy moment slows both.

A turn is some calls in a row after one that is not timed: onnxruntime's and OpenMP's threads spin for a
while after a call, and would take the cores from whoever comes next.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

BATCHES = (1, 32)
WARM_UP, LEAST, MOST, TURN = 2, 5, 500, 5
"""Calls before the clock; at least and at most how many are timed; and how many in a row."""


def speeds(ways: Mapping[str, tuple[Callable[..., object], Sequence[Any]]], seconds: float) -> dict[str, Any]:
    """p50 and p95 in milliseconds and samples a second of each way, at each of BATCHES.

    Args:
        ways: name -> what is called, and its inputs (tensors or arrays), repeated to fill a batch.
        seconds: how long all ways together are timed at each batch size; at least LEAST calls each.
    """
    found: dict[str, Any] = {"threads": torch.get_num_threads(), **{name: {} for name in ways}}
    with torch.inference_mode():
        for size in BATCHES:
            calls = [(name, call, [_filled(x, size) for x in inputs]) for name, (call, inputs) in ways.items()]
            for name, times in _timed(calls, seconds).items():
                marks = torch.tensor([0.5, 0.95], dtype=torch.float64)
                p50, p95 = torch.tensor(times, dtype=torch.float64).quantile(marks).tolist()
                figures = {"p50_ms": p50 * 1e3, "p95_ms": p95 * 1e3, "per_second": size / p50, "calls": len(times)}
                found[name][str(size)] = figures
    return found


def _timed(calls: Sequence[tuple[str, Callable[..., object], Sequence[Any]]], seconds: float) -> dict[str, list[float]]:
    """The seconds of each call, taken in turns."""
    for _ in range(WARM_UP):
        for _, call, inputs in calls:
            call(*inputs)
    taken: dict[str, list[float]] = {name: [] for name, _, _ in calls}
    end, timed = time.perf_counter() + seconds, 0
    while timed < LEAST or (timed < MOST and time.perf_counter() < end):
        timed += TURN
        for name, call, inputs in calls:
            call(*inputs)
            for _ in range(TURN):
                clock = time.perf_counter()
                call(*inputs)
                taken[name].append(time.perf_counter() - clock)
    return taken


def _filled(x: Any, size: int) -> Any:
    """`size` samples of `x`, repeated where it has fewer."""
    return x[[i % len(x) for i in range(size)]]
