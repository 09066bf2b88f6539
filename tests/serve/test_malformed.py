"""Whatever is sent, the reply is a line of JSON with a status of 4xx, and the next request is answered."""

from __future__ import annotations

import json
import socket

import pytest
from malformed import Upload, known
from serving import Running, image

pytest_plugins = ("services",)
KNOWN = known()


def alive(service: Running) -> None:
    assert service.ask("POST", "/predict", image(255)).json["predictions"][0]["class"] == "<b>white</b>"


@pytest.mark.parametrize("upload", KNOWN, ids=[u.what for u in KNOWN])
def test_uploads(service: Running, upload: Upload) -> None:
    reply = service.ask("POST", "/predict", upload.body, upload.headers)
    assert reply.status in upload.statuses, reply.body
    assert reply.headers["content-type"] == "application/json"
    said = json.loads(reply.body)
    assert set(said) <= {"error", "hint"} and said["error"].isprintable() and len(reply.body) < 500
    assert reply.body.count(b"\n") == 1 and reply.body.isascii()
    assert not [word for word in (b"Traceback", b"site-packages", b".py") if word in reply.body]
    alive(service)


@pytest.mark.parametrize("top", ["0", "-1", "x", "1.5", "", "99999999", "٣", "1&top=2&x=%00"])
def test_a_bad_number_of_answers(service: Running, top: str) -> None:
    from urllib.parse import quote

    reply = service.ask("POST", f"/predict?top={quote(top, safe='&=%')}", image())
    if top.startswith("1&"):
        assert reply.status == 200 and len(reply.json["predictions"][0]["top"]) == 2
    else:
        assert reply.status == 400 and "top" in reply.json["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/predict", 405), ("PUT", "/predict", 405), ("POST", "/", 405), ("DELETE", "/model", 405),
     ("GET", "/../../etc/passwd", 404), ("GET", "/%2e%2e/%00", 404), ("GET", "/docs", 404), ("BREW", "/", 405),
     ("GET", "/" + "a" * 9000, 404)],
)  # fmt: skip
def test_paths_and_methods(service: Running, method: str, path: str, status: int) -> None:
    reply = service.ask(method, path)
    assert reply.status == status and reply.json["error"] and reply.body.count(b"\n") == 1


RAW = {
    "not HTTP": b"hello there\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    "a huge head": b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: " + b"y" * 100_000 + b"\r\n\r\n",
    "too many heads": b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * 20_000 + b"\r\n",
    "a huge path": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "two lengths": b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "a length below 0": b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    "a length of words": b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: ten\r\n\r\n",
    "a bad chunk": b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "an unknown encoding": b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\nabc",
    "a head with a null": b"GET / HTTP/1.1\r\nHost: local\x00host\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("raw", RAW.values(), ids=RAW)
def test_what_is_hardly_a_request(service: Running, raw: bytes) -> None:
    with socket.create_connection(("127.0.0.1", service.port), timeout=60) as client:
        try:
            client.sendall(raw)
            client.shutdown(socket.SHUT_WR)
            reply = b"".join(iter(lambda: client.recv(65536), b""))
        except ConnectionError:  # refused before all of it was sent
            reply = b""
    head, _, body = reply.partition(b"\r\n\r\n")
    if reply or len(raw) < 65536:  # of what is longer, closing early may lose the reply
        assert head.split()[1] in (b"400", b"408", b"431", b"501"), reply
        assert json.loads(body)["error"] and body.count(b"\n") == 1 and body.endswith(b"\n")
    alive(service)


def test_clients_that_leave_in_the_middle(service: Running) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\n"
    length, chunked = b"Content-Length: 1000\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n5\r\nab"
    for sent in (b"", b"POST /pre", head + length, head + chunked):
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", service.port), timeout=60) as client:
                client.sendall(sent)
    alive(service)
    assert service.figures()["bigmodel_requests_in_work"] == 0
