"""Decode many images in parallel threads; the decoders release the GIL."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from bigmodel_cli.core.processes.cpu_count import available_cores

CHUNK = 16  # images per task
MAX_PENDING = 128  # tasks that may wait for a thread
PATIENCE = 2.0  # seconds of work that nobody wonders about
REPORT_EVERY = 0.1  # seconds between two progress reports
Progress = Callable[[str, int, int | None], None]
"""(what, done, total or None), called from the thread that requested the images; it may raise to stop decoding."""

_listeners: list[Progress] = []


@contextlib.contextmanager
def progress_listener(listener: Progress) -> Iterator[None]:
    """Call `listener` with decoding progress while the block runs."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def report_progress(what: str, done: int, total: int | None) -> None:
    """Report progress to all listeners."""
    for listener in _listeners:
        listener(what, done, total)


class SlowProgress:
    """Reports progress of `total` steps, one after the other, once they have taken longer than PATIENCE."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.done, self.shown = what, total, 0, False
        self.started = self.reported = time.monotonic()

    def step(self, count: int = 1) -> None:
        now, self.done = time.monotonic(), self.done + count
        if now - self.started > PATIENCE and now - self.reported > REPORT_EVERY:
            self.reported, self.shown = now, True
            report_progress(self.what, min(self.done, self.total), self.total)

    def finish(self) -> None:
        """All that is left is not needed."""
        if self.shown:
            report_progress(self.what, self.total, self.total)


def for_each(what: str, count: int, function: Callable[[int], object]) -> None:
    """Call `function` on 0 to `count` - 1 in parallel and report progress; the first failure in order is raised."""

    def run(part: range) -> None:
        for index in part:
            function(index)

    reported = time.monotonic()
    with decoder_pool() as pool:
        try:
            for done in _run_in_order(pool, run, count):
                if time.monotonic() - reported > REPORT_EVERY or done == count:
                    reported = time.monotonic()
                    report_progress(what, done, count)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _run_in_order(pool: ThreadPoolExecutor, run: Callable[[range], None], count: int) -> Iterator[int]:
    """Submit 0 to `count` - 1 in chunks, since submitting a small image takes longer than decoding it.

    Yields how many are done, in order, with at most MAX_PENDING tasks waiting.
    """
    pending: deque[tuple[int, Future[None]]] = deque()
    for start in range(0, count, CHUNK):
        stop = min(start + CHUNK, count)
        pending.append((stop, pool.submit(run, range(start, stop))))
        while len(pending) > MAX_PENDING or (stop == count and pending):
            done, future = pending.popleft()
            future.result()
            yield done


def decoder_pool() -> ThreadPoolExecutor:
    """A pool with one thread per core."""
    return single_core_pool(available_cores(), "decode")


def single_core_pool(count: int, name: str) -> ThreadPoolExecutor:
    """A pool of `count` threads that each use one core.

    By default, torch starts a team of OpenMP threads in each of them. With more threads than cores, libgomp makes
    them all sleep between operations instead of spinning, and training runs at two thirds of its speed.
    """
    import torch  # here, so that importing this module for progress alone stays fast

    def initialise() -> None:
        torch.get_num_threads()  # a thread adopts the global number when it first asks, or first computes
        torch.set_num_threads(1)

    threads = torch.get_num_threads()
    started = threading.Barrier(count + 1)
    pool = ThreadPoolExecutor(count, name, initializer=initialise)
    for _ in range(count):
        pool.submit(started.wait)
    started.wait()
    torch.set_num_threads(threads)  # the workers' setting also became the default for later threads
    return pool
