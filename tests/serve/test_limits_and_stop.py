"""Slow clients, slow models, full queues, signals: each has a bound, and ends in a reply."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import environment
from serving import Running, Start, form, image, until

pytest_plugins = ("services",)


def opened(service: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", service.port), timeout=60)


def half_sent(service: Running, body: bytes) -> socket.socket:
    """A connection on which a request to predict waits for the second half of its body."""
    client = opened(service)
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    client.sendall(head.encode() + body[: len(body) // 2])
    until(lambda: service.figures()["bigmodel_requests_in_work"] == 1)
    return client


def received(client: socket.socket) -> tuple[int, Any]:
    reply = b"".join(iter(lambda: client.recv(65536), b""))
    head, _, body = reply.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def test_a_slow_model_and_a_dead_one(stand_in: Start) -> None:
    service = stand_in(seconds=5, timeout=1.5, max_batch=1)  # decoding counts, and takes its time on a busy machine
    began = time.monotonic()
    reply = service.ask("POST", "/predict", image())
    assert reply.status == 504 and time.monotonic() - began < 4.9, "before the model has an answer"
    assert reply.json == {"error": "the model did not answer within 1.5 s"}
    until(lambda: service.ask("GET", "/healthz").status == 503)  # it is asked, and is busy beyond the time
    until(lambda: service.ask("GET", "/healthz").status == 200)
    service.ask("POST", "/predict", image())
    began = time.monotonic()
    assert service.stop() == 0 and time.monotonic() - began < 20


@pytest.mark.parametrize(("timeout", "status"), [(1.5, 504), (20, 200)])
def test_decoding_counts_in_the_time_limit(timeout: float, status: int, stand_in: Start) -> None:
    """Alone, and together with a model that alone is within it. Negative control: a limit that is longer."""
    service = stand_in(timeout=timeout, seconds=1)
    with ThreadPoolExecutor(2) as pool:
        alone, together = pool.map(lambda s: service.ask("POST", "/predict", *form((s, image()))), ("2.5", "0.8"))
    assert (alone.status, together.status) == (status, status), (alone.body, together.body)
    if status == 504:
        assert alone.json["error"] == "the samples were not decoded within 1.5 s"


def test_a_full_queue_is_refused_at_once_and_says_when_to_come_again(stand_in: Start) -> None:
    service = stand_in(seconds=0.4, queue=3, max_batch=1)
    with ThreadPoolExecutor(12) as pool:
        replies = list(pool.map(lambda _: service.ask("POST", "/predict", image()), range(12)))
    codes = [r.status for r in replies]
    assert codes.count(200) >= 3 and codes.count(503) >= 6 and set(codes) == {200, 503}
    refused = next(r for r in replies if r.status == 503)
    assert refused.headers["retry-after"] == "1" and "in work" in refused.json["error"]
    assert service.ask("POST", "/predict", image()).status == 200


def test_a_model_that_answers_nonsense(stand_in: Start) -> None:
    service = stand_in()
    for grey in (51, 102, 153):  # not finite, of another shape, an error of its own
        reply = service.ask("POST", "/predict", image(grey))
        assert reply.status == 500 and reply.json["error"].startswith("the service failed: ")
        assert service.ask("POST", "/predict", image(0)).status == 200
    assert service.figures()['bigmodel_requests_total{code="500",path="/predict"}'] == 3
    assert service.stop() == 0
    lines = service.error.splitlines()  # one each, and no traceback
    assert len(lines) == 3 and all(line.startswith("error: a bug in bigmodel: ") for line in lines)
    assert "out of\\nluck" in lines[2]


def test_slow_clients(stand_in: Start) -> None:
    service = stand_in(head=0.5, timeout=0.5)
    with opened(service) as silent, opened(service) as drip, half_sent(service, image()) as body:
        drip.sendall(b"GET / HT")
        time.sleep(0.3)
        drip.sendall(b"TP/1.1\r\n")  # which does not renew the time
        for client, what in ((silent, "no whole request"), (drip, "no whole request"), (body, "the body did not")):
            status, said = received(client)
            assert status == 408 and what in said["error"]
    assert service.ask("GET", "/healthz").status == 200


def test_too_many_connections(stand_in: Start) -> None:
    service = stand_in(queue=2, spare=3)
    held = [opened(service) for _ in range(5)]
    until(lambda: received(opened(service))[0] == 503)
    for client in held:
        client.close()
    until(lambda: service.ask("GET", "/healthz").status == 200)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 0)])
def test_a_signal_lets_what_is_in_work_finish(start: Start, number: int, code: int) -> None:
    service = start("--stop-timeout", 20)
    body = image(255)
    with half_sent(service, body) as client:
        service.process.send_signal(number)
        until(lambda: _refused(service.port))
        client.sendall(body[len(body) // 2 :])
        status, said = received(client)
    assert status == 200 and said["predictions"][0]["class"] == "<b>white</b>"
    assert service.process.wait(10) == code
    assert "error" not in service.error


def test_what_does_not_finish_is_cut_off_and_told(start: Start) -> None:
    service = start("--stop-timeout", 1)
    with half_sent(service, image()) as client:
        began = time.monotonic()
        assert service.stop() == 128 + signal.SIGTERM
        assert time.monotonic() - began < 20
        assert received(client) == (503, {"error": "the service is stopping"})
    assert "error: stopped; 1 request was not answered" in service.error


def _refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_port_in_use_and_an_address_of_another_machine(exports: Path, run_cli: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_cli("serve", exports / "shades", "--port", port, fresh=True)
    assert done.returncode == 3 and done.stdout == ""
    assert done.stderr.startswith(f"error: port {port} on 127.0.0.1: Address already in use\nhint: --port 0")
    done = run_cli("serve", exports / "shades", "--host", "192.0.2.1", fresh=True)
    assert done.returncode == 2 and done.stderr.startswith("error: --host 192.0.2.1: ")


def test_what_cannot_be_served(exports: Path, run_cli: Any, tmp_path: Path) -> None:
    done = run_cli("serve", tmp_path, "--port", 0, fresh=True)
    assert done.returncode == 2 and "not an export folder" in done.stderr
    changed = tmp_path / "changed"
    changed.mkdir()
    for file in (exports / "shades").iterdir():
        (changed / file.name).write_bytes(file.read_bytes() + b"\n" * (file.suffix == ".onnx"))
    done = run_cli("serve", changed, "--port", 0, fresh=True)
    assert done.returncode == 2 and "not the file that was exported" in done.stderr


@pytest.mark.parametrize("package", ["fastapi", "prometheus_client"])
def test_a_missing_extra(exports: Path, package: str) -> None:
    program = f"import sys; sys.modules[{package!r}] = None; from bigmodel_cli.cli import main; main()"
    command = [sys.executable, "-c", program, "serve", str(exports / "shades"), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=60)
    assert done.returncode == 3 and done.stdout == ""
    assert done.stderr.startswith(f"error: serve needs {package}") and "[serve]'" in done.stderr


def test_it_is_small_and_prints_what_a_program_reads(start: Start) -> None:
    running = start("--json")
    said = json.loads(running.url)
    assert (
        said["host"] == "127.0.0.1" and said["url"] == f"http://127.0.0.1:{said['port']}" and said["name"] == "shades"
    )
    running.port = said["port"]
    assert running.ask("POST", "/predict", image()).status == 200
    maps = Path(f"/proc/{running.process.pid}/maps").read_text()
    assert "libonnx" in maps or "onnxruntime" in maps
    assert "torch" not in maps and "sklearn" not in maps
    assert running.figures()["process_resident_memory_bytes"] < 200e6
    assert running.stop() == 0 and running.error == ""


def test_a_line_a_request(start: Start) -> None:
    running = start("--log")
    running.ask("GET", "/a%1b%5b31m")
    running.ask("POST", "/predict", image())
    assert running.stop() == 0
    _, first, second = running.error.splitlines()
    assert first.startswith("GET /a\\x1b[31m 404 ") and second.startswith("POST /predict 200 ")
