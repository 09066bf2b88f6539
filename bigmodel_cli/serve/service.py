"""The model, its queue and its limits: what a request to predict goes through."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from bigmodel_cli.core.cpu_count import available_cores
from bigmodel_cli.core.errors import BigmodelError
from bigmodel_cli.serve.batching import Batcher
from bigmodel_cli.serve.http_errors import HttpRefusal
from bigmodel_cli.serve.metrics import Metrics
from bigmodel_cli.serve.model import ServedModel
from bigmodel_cli.serve.uploads import Limits, read_body

FRESH = 1.0  # seconds: a model that answered this lately is not asked again whether it does


@dataclass(frozen=True)
class Options:
    """`queue`: requests in work at once, further ones are refused. `timeout`: seconds for the model's answer.

    `hosts`: the names that a request's Host may hold; None: any.
    """

    limits: Limits
    max_batch: int
    max_wait: float
    queue: int
    timeout: float
    hosts: frozenset[str] | None


class Service:
    """The model, its queue, and what is counted."""

    def __init__(self, served: ServedModel, options: Options) -> None:
        self.served, self.options = served, options
        self.in_work = 0
        self._probe: asyncio.Task[Any] | None = None
        self.batcher = Batcher(
            served.answer,
            max_batch=options.max_batch,
            max_wait=options.max_wait,
            ran=lambda *ran: self.metrics.ran(*ran),
        )
        self.metrics = Metrics(max_batch=options.max_batch, in_work=lambda: self.in_work, waiting=self.batcher.waiting)
        self._readers = ThreadPoolExecutor(available_cores(), "reader")

    async def predict(self, request: Request) -> dict[str, Any]:
        """The classes of each sample in the body, ``?top=`` of them, likeliest first."""
        top = self._top(request.query_params.get("top"))
        if self.in_work >= self.options.queue:
            raise HttpRefusal(503, f"{self.in_work} requests are in work", hint="try again")
        self.in_work += 1
        try:
            body = await read_body(request, self.options.limits)
            kind = request.headers.get("content-type", "")
            loop, read = asyncio.get_running_loop(), self.served.reader.read
            samples = await loop.run_in_executor(self._readers, read, kind, body, self.options.limits)
            del body
            rows = await self._answers([sample for _, sample in samples])
        finally:
            self.in_work -= 1
        found = []
        for (name, _), row in zip(samples, rows, strict=True):
            best = self.served.likeliest(row, top)
            found.append({"name": name, **best[0], "top": best})
        return {"predictions": found}

    def _top(self, asked: str | None) -> int:
        if asked is None:
            return min(5, len(self.served.labels))
        if not asked.isascii() or not asked.isdigit() or not 1 <= len(asked) <= 6 or int(asked) < 1:
            raise HttpRefusal(400, f"top={asked[:40]}", "expected a whole number from 1")
        return int(asked)

    async def _answers(self, samples: list[Any]) -> list[Any]:
        try:
            async with asyncio.timeout(self.options.timeout):
                return await self.batcher(samples)
        except TimeoutError:
            raise HttpRefusal(504, f"the model did not answer within {self.options.timeout:g} s") from None

    async def healthy(self) -> None:
        """That the model answers: it did so lately, or does when asked.

        Raises:
            Refusal: 503, it does not.
        """
        if time.monotonic() - self.batcher.last_answer < FRESH:
            return
        if self._probe is None or self._probe.done():  # one question at a time, however many ask
            self._probe = asyncio.create_task(self._answers([self.served.reader.example()]))
        try:
            await asyncio.shield(self._probe)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            raise HttpRefusal(503, f"the model does not answer: {error}") from None

    async def warm_up(self) -> None:
        """Have the model answer once, so that what is wrong with it is told at the start.

        Raises:
            BigmodelError: it does not answer.
        """
        try:
            await self._answers([self.served.reader.example()])
        except Exception as error:  # runtimes raise kinds of their own
            raise BigmodelError(f"the model does not answer: {error}") from error

    def ready(self) -> None:
        """That a request would be taken now.

        Raises:
            Refusal: 503, the service is full.
        """
        if self.in_work >= self.options.queue:
            raise HttpRefusal(503, f"{self.in_work} requests are in work")

    def close(self) -> None:
        self.batcher.close(timeout=0.5)
        self._readers.shutdown(wait=False, cancel_futures=True)
