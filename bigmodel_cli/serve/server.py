"""A socket, uvicorn on it, and how it ends.

uvicorn bounds neither the time that a request's head takes to arrive nor the words of its own
refusals; :class:`Protocol` does.
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
from bigmodel_cli.serve.middleware import ALWAYS, HEAD_BYTES, Middleware

HEAD_SECONDS = 10.0
SPARE = 256
"""Connections beside those whose requests may be in work: idle ones, health checks."""


class Protocol(H11Protocol):
    """uvicorn's, but a connection on which no whole head of a request arrives in HEAD_SECONDS is closed.

    The time runs from the connection's begin, or from the first byte after a reply: drops do not renew it.
    """

    _head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        gate: Middleware = self.config.app  # type: ignore[assignment]
        if len(self.connections) > gate.service.options.queue + SPARE:
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
            self._head = self.loop.call_later(HEAD_SECONDS, self._late)

    def _unwatch(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _late(self) -> None:
        self._head = None
        if not self.transport.is_closing():
            self._refuse(HttpRefusal(408, f"no whole request within {HEAD_SECONDS:g} s", close=True))

    def send_400_response(self, msg: str) -> None:
        """Not HTTP, or a head of more than HEAD_BYTES."""
        self._refuse(
            HttpRefusal(
                400, f"not a request: {msg}", f"expected HTTP/1.1, a head of at most {HEAD_BYTES} bytes", close=True
            )
        )

    def _refuse(self, refusal: HttpRefusal) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = refusal.body()
            headers = {**ALWAYS, **refusal.headers(), "content-type": "application/json"}
            raw = [(k.encode(), v.encode()) for k, v in {**headers, "content-length": str(len(body))}.items()]
            for event in (h11.Response(status_code=refusal.status, headers=raw), h11.Data(body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
            self.config.app.service.metrics.served("other", refusal.status, 0.0)  # type: ignore[union-attr]
        self.transport.close()


class Server(uvicorn.Server):
    """uvicorn's, but a signal asks it to end, and is not raised again once it has."""

    signum: int | None = None

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self._ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:  # type: ignore[override]
        old = {s: signal.signal(s, self._asked) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def _asked(self, signum: int, frame: object) -> None:
        twice = self.signum == signum == signal.SIGINT
        self.signum = signum
        self.handle_exit(signum if twice else signal.SIGTERM, None)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; `port` 0 takes a free one.

    Raises:
        InputError: `host` is not an address of this machine.
        MachineError: the port is in use, or this user may not have it.
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
            raise MachineError(f"port {port} on {host}: {error.strerror}", hint="--port 0 takes a free one") from None
        raise InputError(f"--host {host}: {error.strerror}", "expected an address of this machine") from None
    return listening


def run(gate: Middleware, listening: socket.socket, stop_seconds: int, ready: Callable[[], None]) -> None:
    """Serve until a signal asks to stop; what is in work then has `stop_seconds` to be answered.

    `ready` is called when the model has answered once and requests are taken.

    Raises:
        InterruptedRun: requests were cut off, by a second Ctrl-C or since the time was up.
        BigmodelError: the model does not answer.
    """
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "asyncio", "python_multipart"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)  # the gate says what there is to say
    config = uvicorn.Config(
        gate, http=Protocol, ws="none", lifespan="off", log_config=None, access_log=False, proxy_headers=False,
        server_header=False, h11_max_incomplete_event_size=HEAD_BYTES, timeout_graceful_shutdown=stop_seconds,
    )  # fmt: skip
    server = Server(config, ready)

    async def serve() -> None:
        await gate.service.warm_up()
        await server.serve(sockets=[listening])

    try:
        asyncio.run(serve())
    finally:
        gate.service.close()
    if gate.cut and server.signum is not None:
        cut = "1 request was" if gate.cut == 1 else f"{gate.cut} requests were"
        raise InterruptedRun(server.signum, f"stopped; {cut} not answered in time")
