"""Run the service with uvicorn on a socket, and shut it down gracefully.

uvicorn has no timeout for a request's header, and its own error responses are plain text;
:class:`Protocol` adds both.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from bigmodel_cli.core.errors import InputError, InterruptedRun, MachineError
from bigmodel_cli.serve.http_errors import HttpRefusal
from bigmodel_cli.serve.middleware import HEAD_BYTES, SECURITY_HEADERS, Middleware

HEAD_SECONDS = 10.0
SPARE_CONNECTIONS = 256
"""Connections allowed beyond the queue limit, for idle clients and health checks."""


class Protocol(H11Protocol):
    """uvicorn's protocol, but closes connections on which no complete request header arrives in HEAD_SECONDS.

    The time starts with the connection, or after a response. Trickling bytes do not extend it (slowloris).
    """

    _head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        middleware: Middleware = self.config.app  # type: ignore[assignment]
        if len(self.connections) > middleware.service.options.queue + SPARE_CONNECTIONS:
            self._refuse(HttpRefusal(503, f"{len(self.connections)} connections are open", close=True))
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._unwatch()
        elif self._head is None and not self.transport.is_closing():
            self._head = self.loop.call_later(HEAD_SECONDS, self._time_out)

    def _unwatch(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _time_out(self) -> None:
        self._head = None
        if not self.transport.is_closing():
            self._refuse(HttpRefusal(408, f"no whole request within {HEAD_SECONDS:g} s", close=True))

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP, or a header of more than HEAD_BYTES."""
        self._refuse(
            HttpRefusal(
                400, f"not a request: {msg}", f"expected HTTP/1.1, a head of at most {HEAD_BYTES} bytes", close=True
            )
        )

    def _refuse(self, refusal: HttpRefusal) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = refusal.body()
            headers = {**SECURITY_HEADERS, **refusal.headers(), "content-type": "application/json"}
            raw = [(k.encode(), v.encode()) for k, v in {**headers, "content-length": str(len(body))}.items()]
            for event in (h11.Response(status_code=refusal.status, headers=raw), h11.Data(body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
            self.config.app.service.metrics.served("other", refusal.status, 0.0)  # type: ignore[union-attr]
        self.transport.close()


class Server(uvicorn.Server):
    """uvicorn's server, but a signal stops it gracefully and is not raised again afterwards."""

    signum: int | None = None

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self._ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:  # type: ignore[override]
        old = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def _on_signal(self, signum: int, frame: object) -> None:
        twice = self.signum == signum == signal.SIGINT
        self.signum = signum
        self.handle_exit(signum if twice else signal.SIGTERM, None)


def bind(host: str, port: int) -> socket.socket:
    """Open a listening socket; `port` 0 picks a free port.

    Raises:
        InputError: `host` is not an address of this machine.
        MachineError: the port is in use, or not permitted for this user.
    """
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, number)
    except (OSError, UnicodeError) as error:
        raise InputError(f"--host {host}: {error}", "expected a name or an address of this machine") from None
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
        listening.listen(1024)
    except OSError as error:
        listening.close()
        if isinstance(error, PermissionError) or error.errno == errno.EADDRINUSE:
            raise MachineError(f"port {port} on {host}: {error.strerror}", hint="--port 0 picks a free port") from None
        raise InputError(f"--host {host}: {error.strerror}", "expected an address of this machine") from None
    return listening


def run(middleware: Middleware, listening: socket.socket, stop_seconds: int, ready: Callable[[], None]) -> None:
    """Serve until a signal arrives; requests in flight then have `stop_seconds` to finish.

    `ready` is called once the model has responded and requests are accepted.

    Raises:
        InterruptedRun: requests were cut off, by a second Ctrl-C or the timeout.
        BigmodelError: the model does not respond.
    """
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "asyncio", "python_multipart"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)  # the middleware does the logging
    config = uvicorn.Config(
        middleware, http=Protocol, ws="none", lifespan="off", log_config=None, access_log=False, proxy_headers=False,
        server_header=False, h11_max_incomplete_event_size=HEAD_BYTES, timeout_graceful_shutdown=stop_seconds,
    )  # fmt: skip
    server = Server(config, ready)

    async def serve() -> None:
        await middleware.service.warm_up()
        await server.serve(sockets=[listening])

    try:
        asyncio.run(serve())
    finally:
        middleware.service.close()
    if middleware.cut and server.signum is not None:
        cut = "1 request was" if middleware.cut == 1 else f"{middleware.cut} requests were"
        raise InterruptedRun(server.signum, f"stopped; {cut} not answered in time")
