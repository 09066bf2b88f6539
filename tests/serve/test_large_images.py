"""Small uploads that are large images: memory stays within the documented bound, and small requests are answered."""

from __future__ import annotations

import asyncio
import io
import json
import resource
import select
import socket
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from serving import Running, Start, image

from bigmodel_cli.core.processes.cpu_count import available_cores
from bigmodel_cli.serve.decoders import MAX_BYTES_PER_PIXEL, SMALL_PIXELS, Decoders
from bigmodel_cli.serve.http_errors import HttpRefusal
from bigmodel_cli.serve.model import Part

pytest_plugins = ("services",)

PIXELS = 12_000_000
SIZE = (4000, 3000)


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def large() -> dict[str, bytes]:
    """Flat images of 12 million pixels: a few kB each."""
    colours = {mode: Image.new(mode, SIZE) for mode in ("RGBA", "RGB", "L", "P")}
    sixteen = Image.fromarray(np.zeros(SIZE[::-1], np.uint16))
    turned = Image.Exif()
    turned[274] = 6
    found = {f"PNG {mode}": saved(picture, "PNG") for mode, picture in colours.items()}
    found["PNG 16 bit"] = saved(sixteen, "PNG")
    found["WebP"] = saved(colours["RGBA"], "WEBP", lossless=True, method=0)
    found["JPEG turned"] = saved(colours["RGB"], "JPEG", exif=turned)
    found["JPEG progressive"] = saved(colours["RGB"], "JPEG", progressive=True)
    return found


def memory(service: Running, key: str) -> int:
    """Bytes of a line of /proc/PID/status."""
    lines = Path(f"/proc/{service.process.pid}/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key + ":"))


def bound() -> int:
    return MAX_BYTES_PER_PIXEL * (PIXELS + available_cores() * SMALL_PIXELS)


def answered(service: Running) -> list[int]:
    """The statuses of all large images at once, while small ones are sent one by one."""
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(service.ask, "POST", "/predict", body) for body in large().values()]
        while not all(one.done() for one in waiting):
            assert service.ask("POST", "/predict", image()).status == 200
        return [one.result().status for one in waiting]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_eight_large_images_at_once(start: Start) -> None:
    service = start("--max-pixels", PIXELS)
    before = memory(service, "VmHWM")
    assert answered(service) == [200] * 8
    one_of_each = sum(4 * PIXELS for _ in large())
    grown = memory(service, "VmHWM") - before
    assert grown < bound() and grown < one_of_each, f"{grown / 1e6:.0f} MB"
    assert memory(service, "VmRSS") - before < 100_000_000, "memory goes back"
    assert service.stop() == 0 and "bug" not in service.error


def test_within_a_real_limit(start: Start) -> None:
    """The kernel refuses more than the documented bound on top of what the service takes."""
    service = start("--max-pixels", PIXELS)
    used = memory(service, "VmData")
    resource.prlimit(service.process.pid, resource.RLIMIT_DATA, (used + bound(), used + bound()))
    assert answered(service) == [200] * 8


def test_beyond_the_limit_it_is_a_reply_and_the_service_lives(start: Start) -> None:
    """Negative control of the limit: with less than an image takes, it is refused in words."""
    service = start("--max-pixels", PIXELS)
    assert service.ask("POST", "/predict", image()).status == 200  # what is imported late is there now
    limit = memory(service, "VmData") + 45_000_000
    resource.prlimit(service.process.pid, resource.RLIMIT_DATA, (limit, limit))
    reply = service.ask("POST", "/predict", large()["PNG RGBA"])
    assert reply.status == 503 and "not enough memory" in reply.json["error"]
    assert service.ask("POST", "/predict", image()).status == 200


def test_a_refusal_keeps_nothing_of_what_was_decoded() -> None:
    """Else the next small image found no memory, until the reply to the large one had been sent."""
    kept: list[weakref.ref[np.ndarray]] = []

    def prepare() -> np.ndarray:
        half = np.zeros(1000)
        kept.append(weakref.ref(half))
        raise MemoryError

    with pytest.raises(HttpRefusal, match="not enough memory"):
        try:
            asyncio.run(Decoders(1).prepare([Part("large", 10**7, prepare)], 10))
        finally:
            assert kept[0]() is None


LISTS = b'{"text": [' + b"[]," * 5_000_000 + b"[]]}"
STRINGS = b'{"text": [' + b'"ab",' * 3_000_000 + b'"ab"]}'
KEYS = b"{" + b",".join(b'"%x":1' % i for i in range(1_400_000)) + b"}"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_json_is_counted_before_it_takes_memory(start: Start) -> None:
    """15 MB of empty lists, of strings or of keys would take 350, 200 and 250 MB."""
    service = start(folder="words")
    assert service.ask("POST", "/predict", b'{"text": "good"}').status == 200
    before = memory(service, "VmHWM")
    for body in (LISTS, STRINGS, KEYS):
        assert 14e6 < len(body) < 16e6
        reply = service.ask("POST", "/predict", body)
        assert reply.status == 413 and "expected at most" in reply.json["error"]
    grown = memory(service, "VmHWM") - before
    assert grown < 4 * len(LISTS), f"{grown / 1e6:.0f} MB"
    quoted = json.dumps({"text": 'good "fine" {[,]} ' * 50_000}).encode()  # one text, and not a short one
    assert service.ask("POST", "/predict", quoted).status == 200
    long = "good " * 300_000  # of 15 MB, a tokenizer took 2.4 GB and 40 s
    for body, kind in ((json.dumps({"text": long}), "application/json"), (f"text\n{long}\n", "text/csv")):
        reply = service.ask("POST", "/predict", body, {"content-type": kind})
        assert reply.status == 413 and "1,000,000" in reply.json["error"], reply.body[:200]


def test_bodies_in_flight_are_bounded(start: Start) -> None:
    """Nine bodies of the largest size, none complete: one is refused, although --queue allows 128."""
    service = start("--max-mb", "1")
    clients = []
    for _ in range(9):
        client = socket.create_connection(("127.0.0.1", service.port), timeout=30)
        head = "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"
        client.sendall(head.encode() + bytes(999_999))
        clients.append(client)
    (first, *_), _, _ = select.select(clients, [], [], 20)
    assert first.recv(100).startswith(b"HTTP/1.1 503")
    for client in clients:
        client.close()


def test_a_body_counts_until_the_model_has_answered(stand_in: Start) -> None:
    """Nine whole bodies of nearly 1 MB while the model takes its time; as many small ones are all answered."""
    service = stand_in(seconds=1.5, max_batch=16)
    for padding, refused in ((0, 0), (999_000, 1)):
        body = image() + bytes(padding)  # a decoder leaves what follows the picture alone
        with ThreadPoolExecutor(9) as pool:
            replies = list(pool.map(lambda _, body=body: service.ask("POST", "/predict", body), range(9)))
        assert sorted(r.status for r in replies) == [200] * (9 - refused) + [503] * refused
    assert "bytes of requests are in work" in next(r for r in replies if r.status == 503).json["error"]
    assert service.ask("POST", "/predict", body).status == 200, "what was answered counts no more"
