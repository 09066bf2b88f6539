"""Work on many images at once, in threads: what decodes them lets go of Python's lock."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from bigmodel_cli.core.cpu_count import available_cores

TASK = 16  # images handed to a thread at once
AHEAD = 128  # tasks that wait for a thread
REPORT = 0.1  # seconds between two reports of progress
Progress = Callable[[str, int, int], None]
"""(what, done, in all), called from the thread that asked for the images; it may raise to stop the decoding."""

_listeners: list[Progress] = []


@contextlib.contextmanager
def listening(listener: Progress) -> Iterator[None]:
    """`listener` hears of decoding while the block runs."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def tell(what: str, done: int, total: int) -> None:
    """Report progress to whoever listens."""
    for listener in _listeners:
        listener(what, done, total)


def for_each(what: str, count: int, do: Callable[[int], object]) -> None:
    """`do` 0 to `count` - 1 in parallel, and tell the listeners; the first failure in order is raised."""

    def run(part: range) -> None:
        for index in part:
            do(index)

    reported = time.monotonic()
    with decoders() as pool:
        try:
            for done in _in_turn(pool, run, count):
                if time.monotonic() - reported > REPORT or done == count:
                    reported = time.monotonic()
                    tell(what, done, count)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _in_turn(pool: ThreadPoolExecutor, run: Callable[[range], None], count: int) -> Iterator[int]:
    """`run` 0 to `count` - 1 in tasks of several, since handing over a small image takes longer than decoding it.

    Gives how many are done, in order, with never more than AHEAD tasks waiting.
    """
    pending: deque[tuple[int, Future[None]]] = deque()
    for start in range(0, count, TASK):
        stop = min(start + TASK, count)
        pending.append((stop, pool.submit(run, range(start, stop))))
        while len(pending) > AHEAD or (stop == count and pending):
            done, future = pending.popleft()
            future.result()
            yield done


def decoders() -> ThreadPoolExecutor:
    """A thread a core."""
    return one_core_each(available_cores(), "decode")


def one_core_each(count: int, name: str) -> ThreadPoolExecutor:
    """`count` threads, each of which uses one core.

    torch would start a team of OpenMP threads in every one of them. More of those than there are cores, and libgomp
    has them all sleep between two operations instead of waiting: training then runs at two thirds of its speed.
    """
    import torch  # which nothing else here needs, and who only listens does not wait for

    def begin() -> None:
        torch.get_num_threads()  # a thread takes over the number of all when it first asks, or first computes
        torch.set_num_threads(1)

    threads = torch.get_num_threads()
    started = threading.Barrier(count + 1)
    pool = ThreadPoolExecutor(count, name, initializer=begin)
    for _ in range(count):
        pool.submit(started.wait)
    started.wait()
    torch.set_num_threads(threads)  # what the workers set is also the default of threads that start later
    return pool
