"""What every request passes on its way in and out: whom it is from, how long it took, what its reply must say."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from bigmodel_cli.serve.http_errors import HttpRefusal
from bigmodel_cli.serve.service import Service

if TYPE_CHECKING:
    from fastapi import FastAPI

HEAD_BYTES = 16 * 1024
"""Of a request line and its headers."""
ALWAYS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "x-frame-options": "DENY",
}
"""Headers of every reply. There is no CORS: another site's page may neither read a reply nor send a request."""


class Middleware:
    """The application with its door."""

    def __init__(self, app: FastAPI, service: Service, log: Callable[[str], None], every: bool) -> None:
        self.app, self.service, self.log, self.every = app, service, log, every
        self.paths = {getattr(route, "path", "") for route in app.routes}
        self.cut = 0
        """Requests whose reply the end of the service cut off."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in ALWAYS.items())]
            await send(message)

        try:
            if (refusal := _too_long(scope) or self._stranger(scope["method"], Headers(scope=scope))) is not None:
                await _refuse(refusal, sending)
            else:
                await self.app(scope, receive, sending)
        except asyncio.CancelledError:
            self.cut += 1
            if not status:
                await _refuse(HttpRefusal(503, "the service is stopping", close=True), sending)
        except Exception as error:  # the framework has answered with 500, and passes it on to be told of
            self.log(f"error: a bug in bigmodel: {type(error).__name__}: {error}")
        finally:
            self._count(scope, status, time.perf_counter() - began)

    def _stranger(self, method: str, headers: Headers) -> HttpRefusal | None:
        """Why a request is none of ours: a page of another site sent it, or sent it here by a name of its own."""
        host = headers.get("host", "").rpartition("@")[2]
        name = host[: host.find("]") + 1] if host.startswith("[") else host.partition(":")[0]
        allowed = self.service.options.hosts
        if allowed is not None and name and name.lower() not in allowed:  # without a Host it is no browser
            # A name that a hostile site has pointed at this machine would make its pages same-origin.
            return HttpRefusal(400, f"Host {name[:80]!r} is not this service's name", hint="serve --allow-host NAME")
        a_link = method == "GET" and headers.get("sec-fetch-mode") == "navigate"
        if headers.get("sec-fetch-site") == "cross-site" and not a_link:
            return HttpRefusal(403, "a page of another site sent this request")
        return None

    def _count(self, scope: MutableMapping[str, Any], status: int, seconds: float) -> None:
        path = scope["path"] if scope["path"] in self.paths else "other"
        self.service.metrics.served(path, status, seconds)
        if self.every:
            self.log(f"{scope['method']} {scope['path'][:100]} {status} {seconds * 1000:.1f} ms")


def _too_long(scope: Scope) -> HttpRefusal | None:
    size = len(scope["raw_path"]) + len(scope["query_string"]) + sum(len(k) + len(v) for k, v in scope["headers"])
    if size <= HEAD_BYTES:
        return None
    return HttpRefusal(431, f"a head of {size} bytes", f"expected at most {HEAD_BYTES}", close=True)


async def _refuse(refusal: HttpRefusal, send: Send) -> None:
    body = refusal.body()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **refusal.headers()}
    raw = [(k.encode(), v.encode()) for k, v in headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
