"""Threads that prepare samples within a budget of pixels: large images neither fill memory nor block small ones.

Small images are decoded by as many threads as there are cores. Large ones wait for one thread of their own: at any time
at most one is decoded, whatever arrives. The memory in use is therefore bounded by
``MAX_BYTES_PER_PIXEL * (largest image + cores * SMALL_PIXELS)``.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from bigmodel_cli.core.errors import MachineError
from bigmodel_cli.serve.http_errors import HttpRefusal

if TYPE_CHECKING:
    import numpy as np

    from bigmodel_cli.serve.model import Part

SMALL_PIXELS = 4_000_000
"""An image of more pixels is large."""
MAX_BYTES_PER_PIXEL = 20
"""The most memory that decoding takes, whatever format and mode (WebP takes most); benchmarks/attack.py measures it."""


class Decoders:
    """Prepares the samples of requests on `threads` threads, and on one more for large images."""

    def __init__(self, threads: int) -> None:
        self._small = ThreadPoolExecutor(threads, "decoder")
        self._large = ThreadPoolExecutor(1, "large decoder")

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """`function` on a thread for small work."""
        return await asyncio.get_running_loop().run_in_executor(self._small, function, *arguments)

    async def prepare(self, parts: Sequence[Part], seconds: float) -> list[np.ndarray]:
        """The input of each part. Cancelling withdraws what has not begun; what has begun stops after its sample.

        Raises:
            TimeoutError: it took longer than `seconds`.
            HttpRefusal: a part is not valid.
        """
        large = any(part.pixels > SMALL_PIXELS for part in parts)
        until = time.monotonic() + seconds
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._large if large else self._small, _prepare, parts, until, large)

    def close(self) -> None:
        for pool in (self._small, self._large):
            pool.shutdown(wait=False, cancel_futures=True)


def _prepare(parts: Sequence[Part], until: float, large: bool) -> list[np.ndarray]:
    samples = []
    try:
        for part in parts:
            if time.monotonic() > until:  # nobody waits for it any more
                raise TimeoutError
            samples.append(_one(part))
    finally:
        if large:
            _give_memory_back()
    return samples


def _one(part: Part) -> np.ndarray:
    try:
        return part.prepare()
    except (MemoryError, MachineError):
        raise HttpRefusal(503, f"{part.name}: not enough memory", hint="a smaller image, or try again") from None


def _give_memory_back() -> None:
    """Have the allocator return freed memory to the system; glibc would keep it for later."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
