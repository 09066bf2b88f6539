"""Which samples share a run of the model, and that each gets its own row."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

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


async def meanwhile(model: Model, batcher: Batcher, first: int, others: Sequence[int]) -> list[asyncio.Task[Any]]:
    """The requests for `first`, and for each of `others`, which were sent while the model ran; then it is let go."""
    tasks = [asyncio.create_task(batcher([first]))]
    await asyncio.to_thread(model.begun.wait, 10)
    tasks += [asyncio.create_task(batcher([one])) for one in others]
    await asyncio.sleep(0)
    model.go.set()
    return tasks


def test_what_waits_shares_the_next_run() -> None:
    model, seen = Model(), []
    batcher = Batcher(model, max_batch=4, max_wait=0, ran=lambda size, seconds: seen.append(size))

    async def scene() -> list[list[np.ndarray]]:
        return await asyncio.gather(*await meanwhile(model, batcher, 1, range(2, 8)))

    replies = asyncio.run(scene())
    assert [reply[0].tolist() for reply in replies] == [[i, 2 * i] for i in range(1, 8)]
    assert model.sizes == seen == [1, 4, 2]
    assert batcher.close(5)


LONG = 3600.0
"""Seconds of a wait that a test cannot outlive: whoever is held by mistake has it fail."""


async def taken(batcher: Batcher) -> None:
    """Until the model's thread has taken what was sent."""
    while batcher.waiting():
        await asyncio.sleep(0.001)


def test_as_many_requests_are_waited_for_as_shared_the_run_before() -> None:
    model = Model()
    batcher = Batcher(model, max_batch=8, max_wait=LONG)

    async def scene() -> None:
        first, *others = await meanwhile(model, batcher, 0, (1, 2, 3))
        await first
        await taken(batcher)  # four clients, of which the first is answered and the others have waited for it
        await asyncio.gather(batcher([4]), *others)  # it asks again, and they meet
        again = []
        for i in (5, 6, 7, 8):  # each asks as soon as it is answered
            again.append(asyncio.create_task(batcher([i])))
            await asyncio.sleep(0)
            await taken(batcher)
        await asyncio.gather(*again)  # the fourth ends the wait, though there is room for four more

    asyncio.run(asyncio.wait_for(scene(), 60))
    assert model.sizes == [1, 4, 4]
    assert batcher.close(5)


@pytest.mark.parametrize("samples", [1, 4])
def test_a_request_that_comes_alone_is_not_held(samples: int) -> None:
    """Nor is the one after it, however many samples it had: they are of one client."""
    model = Model()
    model.go.set()
    batcher = Batcher(model, max_batch=8, max_wait=LONG)

    async def scene() -> None:
        for _ in range(3):
            await batcher(list(range(samples)))

    asyncio.run(asyncio.wait_for(scene(), 60))
    assert sum(model.sizes) == 3 * samples
    assert batcher.close(5)


def test_the_wait_has_an_end() -> None:
    """Of three that shared a run, two are gone: the third is answered all the same."""
    model = Model()
    batcher = Batcher(model, max_batch=8, max_wait=0.01)

    async def scene() -> None:
        await asyncio.gather(*await meanwhile(model, batcher, 0, (1, 2, 3)))
        await batcher([4])

    asyncio.run(asyncio.wait_for(scene(), 60))
    assert model.sizes == [1, 3, 1]
    assert batcher.close(5)


def test_an_error_reaches_those_of_its_run_alone() -> None:
    model = Model()
    batcher = Batcher(model, max_batch=2, max_wait=0)

    async def scene() -> list[object]:
        return await asyncio.gather(*await meanwhile(model, batcher, 1, (2, 13, 4)), return_exceptions=True)

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
