"""Dynamic batching: concurrent requests share one run of the model.

The model runs in one thread, which takes what waits, up to `max_batch` samples. It waits, for at most `max_wait`
seconds, until as many requests are there as shared the run before or came meanwhile. So a request that comes alone is
answered at once, and clients that ask again as soon as they are answered meet in one run.

Shapes: B batch, K classes.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bigmodel_cli.core.processes.call_limit import bounded

if TYPE_CHECKING:
    import numpy as np

Sample = Any
Answer = Callable[[Sequence[Sample]], "np.ndarray"]
"""Prepared samples -> probabilities (B,K)."""


@dataclass(frozen=True)
class _Waiting:
    sample: Sample
    reply: asyncio.Future[np.ndarray]
    loop: asyncio.AbstractEventLoop
    request: int


class Batcher:
    """Passes samples to `answer` in batches, and reports the size and seconds of each batch to `ran`.

    The thread is a daemon, so that a hanging model cannot keep the process from exiting.
    """

    def __init__(
        self, answer: Answer, *, max_batch: int, max_wait: float, ran: Callable[[int, float], None] | None = None
    ) -> None:
        self._answer, self._max_batch, self._max_wait, self._ran = answer, max_batch, max_wait, ran
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._requests = itertools.count()
        self._before = 1  # how many requests shared the run before
        self.last_answer = float("-inf")
        """When the model last responded, by ``time.monotonic``."""
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    def waiting(self) -> int:
        """The number of queued samples."""
        return self._queue.qsize()

    async def __call__(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        """The probabilities (K,) of each sample.

        Raises:
            Exception: whatever the model raised. Cancelling the caller withdraws its samples.
        """
        loop = asyncio.get_running_loop()
        request = next(self._requests)
        waiting = [_Waiting(sample, loop.create_future(), loop, request) for sample in samples]
        for one in waiting:
            self._queue.put(one)
        return list(await asyncio.gather(*(one.reply for one in waiting)))

    def close(self, timeout: float) -> bool:
        """Stop the thread once the queue is empty. Returns whether it stopped within `timeout` seconds."""
        self._queue.put(None)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _work(self) -> None:
        meanwhile = False
        while (first := self._queue.get()) is not None:
            batch = self._with_others(first, meanwhile)
            self._before = len({one.request for one in batch})
            wanted = [one for one in batch if not one.reply.cancelled()]
            meanwhile = self._run(wanted) if wanted else False

    def _with_others(self, first: _Waiting, meanwhile: bool) -> list[_Waiting]:
        """`first` and what joins it; `meanwhile`: it came while the model ran, so that others were served then."""
        batch, requests = [first], {first.request}
        until, expected = time.monotonic() + self._max_wait, 0
        while len(batch) < self._max_batch:
            patience = until - time.monotonic() if len(requests) < expected else 0.0
            try:
                one = self._queue.get(timeout=max(0.0, patience))
            except queue.Empty:
                if expected:
                    break
                expected = self._before + (len(requests) if meanwhile else 0)  # all that waited is taken
                continue
            if one is None:  # stop after this batch
                self._queue.put(None)
                break
            batch.append(one)
            requests.add(one.request)
        return batch

    def _run(self, batch: list[_Waiting]) -> bool:
        """Answer `batch`. Return whether others came meanwhile, not counting who asks again at once when answered."""
        began = time.monotonic()
        try:
            with bounded():
                rows: Any = self._answer([one.sample for one in batch])
        except Exception as error:  # runtimes raise their own types; each request reports the error
            rows = [error] * len(batch)
        else:
            self.last_answer = time.monotonic()
            if self._ran is not None:
                self._ran(len(batch), self.last_answer - began)
        meanwhile = not self._queue.empty()
        for one, row in zip(batch, rows, strict=True):
            with contextlib.suppress(RuntimeError):  # the event loop is closed, so nobody is waiting
                one.loop.call_soon_threadsafe(_deliver, one.reply, row)
        return meanwhile


def _deliver(reply: asyncio.Future[np.ndarray], row: np.ndarray | Exception) -> None:
    if reply.done():
        return
    if isinstance(row, Exception):
        reply.set_exception(row)
    else:
        reply.set_result(row)
