"""Which samples share a run of the model, and that each gets its own row."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Sequence

import numpy as np
import pytest

from bigmodel_cli.serve.batching import Batcher


class Model:
    """Doubles its samples; the first run waits until it is let go."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.go, self.begun = threading.Event(), threading.Event()

    def __call__(self, samples: Sequence[int]) -> np.ndarray:
        self.begun.set()
        assert self.go.wait(10)
        self.sizes.append(len(samples))
        if 13 in samples:
            raise ValueError("unlucky")
        return np.array([[s, 2 * s] for s in samples])


def test_what_waits_shares_the_next_run() -> None:
    model, seen = Model(), []
    batcher = Batcher(model, max_batch=4, max_wait=0, ran=lambda size, seconds: seen.append(size))

    async def scene() -> list[list[np.ndarray]]:
        first = asyncio.create_task(batcher([1]))
        await asyncio.to_thread(model.begun.wait, 10)
        others = [asyncio.create_task(batcher([i])) for i in range(2, 8)]
        await asyncio.sleep(0)
        model.go.set()
        return await asyncio.gather(first, *others)

    replies = asyncio.run(scene())
    assert [reply[0].tolist() for reply in replies] == [[i, 2 * i] for i in range(1, 8)]
    assert model.sizes == seen == [1, 4, 2]
    assert batcher.close(5)


def test_others_are_waited_for_while_requests_come_together() -> None:
    model = Model()
    batcher = Batcher(model, max_batch=3, max_wait=1)

    async def scene() -> list[float]:
        clock = asyncio.get_running_loop().time
        first = asyncio.create_task(batcher([0]))
        await asyncio.to_thread(model.begun.wait, 10)
        others = [asyncio.create_task(batcher([i])) for i in (1, 2, 3)]
        await asyncio.sleep(0)
        model.go.set()
        times = [clock()]
        await asyncio.gather(first, *others)  # a full batch is not held
        times.append(clock())
        for alone in (4, 5):  # the first may have company coming, the second has not
            await batcher([alone])
            times.append(clock())
        return [after - before for before, after in itertools.pairwise(times)]

    full, expectant, alone = asyncio.run(scene())
    assert model.sizes == [1, 3, 1, 1]
    assert full < 0.9 and alone < 0.9 and 1 <= expectant < 5
    assert batcher.close(5)


def test_an_error_reaches_those_of_its_run_alone() -> None:
    model = Model()
    batcher = Batcher(model, max_batch=2, max_wait=0)

    async def scene() -> list[object]:
        first = asyncio.create_task(batcher([1]))
        await asyncio.to_thread(model.begun.wait, 10)
        others = [asyncio.create_task(batcher([i])) for i in (2, 13, 4)]
        await asyncio.sleep(0)
        model.go.set()
        return await asyncio.gather(first, *others, return_exceptions=True)

    first, two, thirteen, four = asyncio.run(scene())
    assert isinstance(two, ValueError) and isinstance(thirteen, ValueError)
    assert not isinstance(first, BaseException) and not isinstance(four, BaseException)
    assert batcher.close(5)


def test_who_has_left_is_not_computed_for() -> None:
    model = Model()
    batcher = Batcher(model, max_batch=8, max_wait=0)

    async def scene() -> list[np.ndarray]:
        first = asyncio.create_task(batcher([1]))
        await asyncio.to_thread(model.begun.wait, 10)
        gone, stays = asyncio.create_task(batcher([2, 3])), asyncio.create_task(batcher([4]))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        model.go.set()
        with pytest.raises(asyncio.CancelledError):
            await gone
        await first
        return await stays

    assert asyncio.run(scene())[0].tolist() == [4, 8]
    assert model.sizes == [1, 1]
    assert batcher.close(5)


def test_a_model_that_never_answers_does_not_hold_the_process() -> None:
    model = Model()
    batcher = Batcher(model, max_batch=1, max_wait=0)

    async def scene() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await batcher([1])

    asyncio.run(scene())
    assert not batcher.close(0.1)
    model.go.set()  # its reply comes when nobody waits any more
    assert batcher.close(5)
