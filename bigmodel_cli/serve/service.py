"""The service: the model, its queue, limits and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from bigmodel_cli.core.errors import BigmodelError
from bigmodel_cli.core.processes.cpu_count import available_cores
from bigmodel_cli.serve.batching import Batcher
from bigmodel_cli.serve.decoders import Decoders
from bigmodel_cli.serve.http_errors import HttpRefusal
from bigmodel_cli.serve.metrics import Metrics
from bigmodel_cli.serve.model import Part, ReadsQueries, ServedModel
from bigmodel_cli.serve.uploads import Limits, read_body

BODIES = 8
"""How many bodies of the largest size may be in memory at once."""
RECENT = 1.0  # seconds; a model that responded this recently counts as healthy without a probe


@dataclass(frozen=True)
class Options:
    """`queue`: maximum requests in flight; more are refused. `timeout`: seconds for the model to respond.

    `hosts`: the allowed names in a request's Host header; None: any.
    """

    limits: Limits
    max_batch: int
    max_wait: float
    queue: int
    timeout: float
    hosts: frozenset[str] | None


class Service:
    """The model with its batcher and metrics."""

    def __init__(self, served: ServedModel, options: Options) -> None:
        self.served, self.options = served, options
        self.in_flight = 0
        self._probe: asyncio.Task[Any] | None = None
        self.batcher = Batcher(
            served.answer,
            max_batch=options.max_batch,
            max_wait=options.max_wait,
            ran=lambda *ran: self.metrics.ran(*ran),
        )
        self.metrics = Metrics(
            max_batch=options.max_batch, in_flight=lambda: self.in_flight, waiting=self.batcher.waiting
        )
        self.decoders = Decoders(available_cores())
        self._bodies = 0

    async def predict(self, request: Request) -> dict[str, Any]:
        """The answer for each sample in the body, with ``?top=`` alternatives, the most likely first."""
        top = self._top(request.query_params.get("top"))
        if self.in_flight >= self.options.queue:
            raise HttpRefusal(503, f"{self.in_flight} requests are in work", hint="try again")
        self.in_flight += 1
        try:
            parts, rows = await self._rows(request)
        finally:
            self.in_flight -= 1
        found = []
        for part, row in zip(parts, rows, strict=True):
            found.append({"name": part.name, **self.served.to_json(row, top), **part.said})
        self.metrics.texts_cut(sum(bool(part.said.get("cut")) for part in parts))
        return {"predictions": found}

    async def _rows(self, request: Request) -> tuple[Sequence[Part], list[Any]]:
        """Each sample in the body and its values (K,). Decoding and the model share the time limit."""
        limits = self.options.limits
        async with self._body(request) as body:
            kind = request.headers.get("content-type", "")
            until = asyncio.get_running_loop().time() + self.options.timeout
            try:
                async with asyncio.timeout_at(until):
                    parts = await self.decoders.run(self.served.reader.parts, kind, body, limits)
                    samples = await self.decoders.prepare(parts, self.options.timeout)
            except TimeoutError:
                what = f"the samples were not decoded within {self.options.timeout:g} s"
                raise HttpRefusal(504, what, hint="smaller images, or try again") from None
            return parts, await self._infer(samples, until)  # the parts hold the body's bytes: it counts until then

    @contextlib.asynccontextmanager
    async def _body(self, request: Request) -> AsyncIterator[bytes]:
        """The body of a request. All bodies together stay within BODIES times the limit of one."""
        held = 0

        def reserve(size: int) -> None:
            nonlocal held
            if self._bodies + size > BODIES * self.options.limits.size:
                raise HttpRefusal(503, f"{self._bodies} bytes of requests are in work", hint="try again", close=True)
            self._bodies += size
            held += size

        try:
            if request.method == "GET":  # only the paths of a reader that takes queries
                assert isinstance(self.served.reader, ReadsQueries)
                yield self.served.reader.query(request.query_params)
            else:
                yield await read_body(request, self.options.limits, reserve)
        finally:
            self._bodies -= held

    def _top(self, asked: str | None) -> int:
        if asked is None:
            return min(5, self.served.outputs)
        if not asked.isascii() or not asked.isdigit() or not 1 <= len(asked) <= 6 or int(asked) < 1:
            raise HttpRefusal(400, f"top={asked[:40]}", "expected a whole number from 1")
        return int(asked)

    async def _infer(self, samples: list[Any], until: float | None = None) -> list[Any]:
        """The model's values for `samples`, until the loop's time `until`; None: within the time limit from now."""
        try:
            async with asyncio.timeout_at(until or asyncio.get_running_loop().time() + self.options.timeout):
                return await self.batcher(samples)
        except TimeoutError:
            raise HttpRefusal(504, f"the model did not answer within {self.options.timeout:g} s") from None

    async def healthy(self) -> None:
        """Check that the model responds: it did so recently, or does so to a probe.

        Raises:
            HttpRefusal: 503, it does not.
        """
        if time.monotonic() - self.batcher.last_answer < RECENT:
            return
        if self._probe is None or self._probe.done():  # concurrent health checks share one probe
            self._probe = asyncio.create_task(self._infer([self.served.reader.example()]))
        try:
            await asyncio.shield(self._probe)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            raise HttpRefusal(503, f"the model does not answer: {error}") from None

    async def warm_up(self) -> None:
        """Run the model once, so that a problem is reported at startup.

        Raises:
            BigmodelError: it does not respond.
        """
        try:
            await self._infer([self.served.reader.example()])
        except Exception as error:  # runtimes raise their own types
            raise BigmodelError(f"the model does not answer: {error}") from error

    def ready(self) -> None:
        """Check that a request would be accepted now.

        Raises:
            HttpRefusal: 503, the service is full.
        """
        if self.in_flight >= self.options.queue:
            raise HttpRefusal(503, f"{self.in_flight} requests are in work")

    def close(self) -> None:
        self.batcher.close(timeout=0.5)
        self.decoders.close()
