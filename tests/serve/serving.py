"""The service as a process of its own, on a free port of 127.0.0.1, and how tests ask it."""

from __future__ import annotations

import http.client
import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from conftest import environment

HERE = Path(__file__).parent
MISSING = ("fastapi", "uvicorn", "python_multipart", "prometheus_client", "onnx", "onnxruntime")
for _module in MISSING:
    pytest.importorskip(_module)


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Running:
    """A service that runs; `url` is what it printed."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True, env=environment())
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        assert self.url, self.error
        self.port = urlsplit(self.url).port or 0

    @property
    def error(self) -> str:
        return self.log.read_text()

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, timeout: float = 30
    ) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body, headers or {})
            reply = connection.getresponse()
            return Reply(reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read())
        finally:
            connection.close()

    def figures(self) -> dict[str, float]:
        """What /metrics says, by the name with its labels."""
        lines = self.ask("GET", "/metrics").body.decode().splitlines()
        return {name: float(value) for name, value in (li.rsplit(" ", 1) for li in lines if not li.startswith("#"))}

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)


Start = Callable[..., Running]


def started(folder: Path, log: Path, *options: Any) -> Running:
    command = [sys.executable, "-m", "bigmodel_cli", "serve", str(folder), "--port", "0", *map(str, options)]
    return Running(command, log)


def until(true: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "never"
        time.sleep(0.01)


def image(grey: int = 200, size: tuple[int, int] = (40, 30), kind: str = "PNG", mode: str = "L") -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new(mode, size, grey if mode == "L" else (grey,) * len(mode)).save(buffer, kind)
    return buffer.getvalue()


def form(*files: tuple[str, bytes], boundary: str = "cut", field: str = "file") -> tuple[bytes, dict[str, str]]:
    """A multipart body and its header."""
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n'
        f"Content-Type: application/octet-stream\r\n\r\n".encode()
        + content
        + b"\r\n"
        for name, content in files
    ]
    body = b"".join(parts) + f"--{boundary}--\r\n".encode()
    return body, {"content-type": f"multipart/form-data; boundary={boundary}"}
