"""Middleware for every request: origin checks, security headers, metrics and logging."""

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
"""Maximum size of a request line with its headers."""
SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "x-frame-options": "DENY",
}
"""Headers of every response. There is no CORS: pages of other sites can neither read responses nor send requests."""


class Middleware:
    """The ASGI application, wrapped in the checks and metrics that apply to every request."""

    def __init__(self, app: FastAPI, service: Service, log: Callable[[str], None], log_all: bool) -> None:
        self.app, self.service, self.log, self.log_all = app, service, log, log_all
        self.paths = {getattr(route, "path", "") for route in app.routes}
        self.cut = 0
        """Number of requests cut off by the shutdown."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    *((k.encode(), v.encode()) for k, v in SECURITY_HEADERS.items()),
                ]
            await send(message)

        try:
            if (
                refusal := _check_head_size(scope) or self._check_origin(scope["method"], Headers(scope=scope))
            ) is not None:
                await _refuse(refusal, sending)
            else:
                await self.app(scope, receive, sending)
        except asyncio.CancelledError:
            self.cut += 1
            if not status:
                await _refuse(HttpRefusal(503, "the service is stopping", close=True), sending)
        except Exception as error:  # the framework has sent a 500 and re-raises for logging
            self.log(f"error: a bug in bigmodel: {type(error).__name__}: {error}")
        finally:
            self._count(scope, status, time.perf_counter() - began)

    def _check_origin(self, method: str, headers: Headers) -> HttpRefusal | None:
        """Refuse cross-site requests, and requests with a foreign Host (DNS rebinding)."""
        host = headers.get("host", "").rpartition("@")[2]
        name = host[: host.find("]") + 1] if host.startswith("[") else host.partition(":")[0]
        allowed = self.service.options.hosts
        if allowed is not None and name and name.lower() not in allowed:  # browsers always send Host
            # A malicious site could resolve its own name to this machine, and its pages would be same-origin.
            return HttpRefusal(400, f"Host {name[:80]!r} is not this service's name", hint="serve --allow-host NAME")
        a_link = method == "GET" and headers.get("sec-fetch-mode") == "navigate"
        if headers.get("sec-fetch-site") == "cross-site" and not a_link:
            return HttpRefusal(403, "a page of another site sent this request")
        return None

    def _count(self, scope: MutableMapping[str, Any], status: int, seconds: float) -> None:
        path = scope["path"] if scope["path"] in self.paths else "other"
        self.service.metrics.served(path, status, seconds)
        if self.log_all:
            self.log(f"{scope['method']} {scope['path'][:100]} {status} {seconds * 1000:.1f} ms")


def _check_head_size(scope: Scope) -> HttpRefusal | None:
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
