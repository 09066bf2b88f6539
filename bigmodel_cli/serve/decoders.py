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
import threading
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
        for pool, size in ((self._small, threads), (self._large, 1)):
            _start_threads(pool, size)

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
    with contextlib.suppress(MemoryError, MachineError):
        return part.prepare()
    # Raised outside a handler: as this one's context, the error would keep what was decoded until the reply is sent.
    raise HttpRefusal(503, f"{part.name}: not enough memory", hint="a smaller image, or try again")


def _start_threads(pool: ThreadPoolExecutor, size: int) -> None:
    """Have `pool` start its threads now: later there may be no memory for their stacks."""
    together = threading.Barrier(size + 1)
    for _ in range(size):
        pool.submit(together.wait)
    together.wait()


def share_freed_memory() -> None:
    """Have all threads allocate from one arena, so that each can use what another freed. Call it before they start.

    With glibc's arena a thread, the small images found no memory after a large one that did not fit.
    """
    _glibc("mallopt", -8, 1)  # M_ARENA_MAX of malloc.h


def _give_memory_back() -> None:
    """Have the allocator return freed memory to the system; glibc would keep it for later."""
    _glibc("malloc_trim", 0)


def _glibc(function: str, *arguments: int) -> None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            getattr(ctypes.CDLL(None), function)(*arguments)
