"""What this machine could do at most: matrix products in fp32 and bf16, and a copy of memory. Prints JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import torch


def best(work: Callable[[], object], seconds: float = 1.0) -> float:
    """The least time of one call, tried for `seconds`."""
    work()
    least, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        clock = time.perf_counter()
        work()
        least = min(least, time.perf_counter() - clock)
    return least


def measure() -> dict[str, float]:
    """GFLOP/s of a 2048 x 2048 product, GB/s read and written by a copy of 256 MB."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    x, y = a.bfloat16(), b.bfloat16()
    source, target = torch.randn(64 * 2**20), torch.empty(64 * 2**20)
    work = 2 * 2048**3
    return {
        "fp32 GFLOP/s": work / best(lambda: a @ b) / 1e9,
        "bf16 GFLOP/s": work / best(lambda: x @ y) / 1e9,
        "copy GB/s": 2 * source.numel() * 4 / best(lambda: target.copy_(source)) / 1e9,
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure()) + "\n")
