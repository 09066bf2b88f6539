"""What the service answers to good requests."""

from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from exported import SHADES
from serving import Running, Start, form, image

from bigmodel_cli.core.readers.text_samples import AS_FOUND
from bigmodel_cli.serve.model import reading_of
from bigmodel_cli.serve.uploads import Limits, texts

pytest_plugins = ("services",)


def test_one_image_as_the_body(service: Running) -> None:
    reply = service.ask("POST", "/predict", image(255))
    assert reply.status == 200 and reply.headers["content-type"] == "application/json"
    (said,) = reply.json["predictions"]
    assert said["name"] == "image" and said["class"] == "<b>white</b>" == said["top"][0]["class"]
    assert [one["class"] for one in said["top"]] == [*SHADES[::-1]]
    assert said["probability"] == pytest.approx(0.9933, abs=1e-4)
    assert sum(one["probability"] for one in said["top"]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "RGBA"), ("JPEG", "RGB"), ("WEBP", "RGB"), ("BMP", "L")])
def test_formats(service: Running, kind: str, mode: str) -> None:
    said = service.ask("POST", "/predict?top=1", image(64, (90, 70), kind, mode), {"content-type": "image/*"}).json
    # A quarter opaque: 64 at alpha 64 over white is 207.
    assert said["predictions"][0]["class"] == ("light" if mode == "RGBA" else "dark")


def test_several_images_in_a_form_keep_their_names_and_order(service: Running) -> None:
    body, headers = form(("a.png", image(0)), ("dir/<b>.jpg", image(255, kind="JPEG")), ("c", image(128)))
    reply = service.ask("POST", "/predict?top=2", body, headers)
    said = reply.json["predictions"]
    assert [(one["name"], one["class"]) for one in said] == [
        ("a.png", "black"), ("dir/<b>.jpg", "<b>white</b>"), ("c", "grey"),
    ]  # fmt: skip
    assert all(len(one["top"]) == 2 for one in said) and reply.body.count(b"\n") == 1


def test_the_answers_of_a_batch_are_those_of_each_alone(service: Running) -> None:
    greys = [0, 40, 80, 120, 160, 200, 240]
    alone = [service.ask("POST", "/predict", image(g)).json["predictions"][0]["top"] for g in greys]
    together = service.ask("POST", "/predict", *form(*((str(g), image(g)) for g in greys))).json["predictions"]
    assert [one["top"] for one in together] == alone


def test_requests_at_once_each_get_their_own_answer_and_share_runs(service: Running) -> None:
    before = service.figures()
    greys = [0, 64, 128, 191, 255] * 12

    def one(grey: int) -> str:
        return service.ask("POST", "/predict?top=1", image(grey)).json["predictions"][0]["class"]

    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(one, greys)) == list(SHADES) * 12
    after = service.figures()
    samples, runs = (after[k] - before[k] for k in ("bigmodel_batch_size_sum", "bigmodel_batch_size_count"))
    assert samples == 60 and runs < 60


def test_what_is_served(service: Running, exports: Path) -> None:
    said = service.ask("GET", "/model").json
    digest = json.loads((exports / "shades/proof.json").read_text())["files"]["model.onnx"]
    assert said == {
        "name": "shades", "format": "onnx", "takes": "image", "answers": "classes", "classes": list(SHADES),
        "digest": digest,
        "limits": {"bytes": 1_000_000, "pixels": 2_000_000, "samples": 8},
    }  # fmt: skip


def test_health_and_figures(service: Running) -> None:
    assert service.ask("GET", "/healthz").json == {"status": "ok"}
    assert service.ask("GET", "/readyz").json == {"status": "ready"}
    name = 'bigmodel_requests_total{code="200",path="/predict"}'
    before = service.figures()[name]
    service.ask("POST", "/predict", image())
    service.ask("GET", "/no/such/path/1")
    after = service.figures()
    assert after[name] == before + 1 == after['bigmodel_request_seconds_bucket{le="+Inf",path="/predict"}']
    assert after['bigmodel_requests_total{code="404",path="other"}'] >= 1
    assert after["bigmodel_requests_in_work"] == after["bigmodel_queue_samples"] == 0
    assert not [key for key in after if "/no/such" in key]  # a stranger's paths would be labels without end


def test_headers_of_every_reply(service: Running) -> None:
    for method, path, status in (("GET", "/", 200), ("GET", "/nope", 404), ("POST", "/predict", 400)):
        reply = service.ask(method, path)
        assert reply.status == status and reply.headers["x-content-type-options"] == "nosniff"
        assert not [name for name in reply.headers if name.startswith("access-control") or name == "server"]
    policy = service.ask("GET", "/").headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    page = service.ask("GET", "/").body.decode()
    assert "://" not in page  # nothing is loaded from anywhere


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 400), ({"host": "localhost:1"}, 200), ({"host": "LOCALHOST"}, 200),
        ({"host": "[::1]:80"}, 200), ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, 200), ({"sec-fetch-site": "same-origin"}, 200),
    ],
)  # fmt: skip
def test_another_site_gets_nothing(service: Running, headers: dict[str, str], status: int) -> None:
    assert service.ask("GET", "/model", headers=headers).status == status


def test_a_client_without_a_host(service: Running) -> None:
    with socket.create_connection(("127.0.0.1", service.port), timeout=60) as client:
        client.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 200")


def test_a_model_that_prepares_its_images_itself(start: Start) -> None:
    service = start(folder="plain")
    sizes = [(0, (40, 30)), (64, (16, 16)), (128, (7, 90)), (191, (300, 200)), (255, (1, 1))]
    files = [(str(grey), image(grey, size)) for grey, size in sizes]
    said = service.ask("POST", "/predict", *form(*files)).json["predictions"]
    assert [one["class"] for one in said] == list(SHADES)
    assert service.ask("GET", "/healthz").status == 200


def test_a_table_is_read_by_the_columns_of_training_or_by_the_usual_ones() -> None:
    limits = Limits(size=1000, pixels=1, samples=9, seconds=1)
    how = reading_of({"recipe": {"data": {"columns": {"text": "utterance", "label": "mood"}}}})
    trained, usual = b"text;utterance\n1;good\n2;bad\n", b"text,n\ngood,1\nbad,2\n"
    for table in (trained, usual):
        assert texts("text/csv", table, limits, how) == [("row 2", "good"), ("row 3", "bad")]
    assert texts("text/csv", trained, limits) == [("row 2", "1"), ("row 3", "2")], "what the column is needed for"
    for strange in ({}, {"recipe": 3}, {"recipe": {"data": {"columns": ["text"]}}}):
        assert reading_of(strange) == AS_FOUND


def test_texts(start: Start) -> None:
    service = start(folder="words")
    about = service.ask("GET", "/model").json
    assert about["takes"] == "text" and about["context"] == 16
    said = service.ask("POST", "/predict", '{"text": ["Good fine", "so dull", "good bad"]}').json["predictions"]
    assert [one["class"] for one in said][:2] == ["glad", "sad"]
    alone = service.ask("POST", "/predict", '{"text": "so dull"}').json["predictions"]
    assert alone[0]["top"] == said[1]["top"] and alone[0]["name"] == "text 1"
    for bad in (b"", b"good", b"[]", b'{"text": 1}', b'{"text": []}', b'{"text": " "}', b'{"text": "a", "b": 1}',
                b"[" * 100_000, b'{"text": "' + b"x" * 50, b"\xff\xfe"):  # fmt: skip
        reply = service.ask("POST", "/predict", bad)
        assert reply.status == 400 and reply.json["error"], bad
    for text, what in (("", "empty"), ("a\0b", "NUL"), ("a\ud800", "surrogate")):
        reply = service.ask("POST", "/predict", json.dumps({"text": ["good", text]}))
        assert reply.status == 400 and "text 2" in str(reply.json) and what in str(reply.json)
    for encoding in ("utf-8-sig", "utf-16"):  # as predict reads a file
        table = 'text,label\n"so dull, indeed",\n"good, fine",\n'.encode(encoding)
        said = service.ask("POST", "/predict", table, {"content-type": "text/csv"}).json["predictions"]
        assert [one["class"] for one in said] == ["sad", "glad"]
    many = json.dumps({"text": ["good"] * 33})
    assert service.ask("POST", "/predict", many).status == 413
    long = json.dumps({"text": ["good " * 16, "good " * 16 + "bad", "good " * 5000]})  # the context holds 16
    found = service.ask("POST", "/predict", long).json["predictions"]
    assert [one["cut"] for one in found] == [False, True, True] and {one["class"] for one in found} == {"glad"}
    assert service.figures()["bigmodel_texts_cut_total"] == 2
    assert service.stop() == 0 and "Traceback" not in service.error
