"""A web server on 127.0.0.1, for as long as a test asks it."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Answer = tuple[int, bytes, Mapping[str, str]]
"""A status, a body, and headers beside or in place of the body's length."""


class Quiet(SimpleHTTPRequestHandler):
    """Serves the files of a folder and logs nothing."""

    def log_message(self, format: str, *args: object) -> None: ...


@contextmanager
def served(handler: Callable[..., Any]) -> Iterator[str]:
    """The address of a server whose requests `handler` takes."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def folder_served(folder: Path, handler: type[Quiet] = Quiet) -> Any:
    """As :func:`served`, for the files of `folder`."""
    return served(functools.partial(handler, directory=str(folder)))


def answering(answer: Callable[[str], Answer]) -> Any:
    """As :func:`served`: `answer` is given the path that a GET or HEAD asks for, with its query."""

    class Handler(Quiet):
        def do_GET(self) -> None:
            status, body, headers = answer(self.path)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.do_GET()

    return served(Handler)
