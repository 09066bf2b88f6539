"""Several labels and numbers over HTTP, and texts from a table."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from exported import SHADES, words
from serving import Start, form, image, started

pytest_plugins = ("services",)


def with_task(folder: Path, task: str, **outputs: list[float]) -> Path:
    """The export in `folder`, as one of `task` whose answers take `outputs`."""
    about = json.loads((folder / "export.json").read_text())
    about["task"], about["input"]["outputs"] = task, outputs
    (folder / "export.json").write_text(json.dumps(about))
    return folder


@pytest.fixture
def begin(tmp_path: Path) -> Any:
    running: list[Any] = []

    def start(folder: Path) -> Any:
        running.append(started(folder, tmp_path / "err"))
        return running[-1]

    yield start
    for service in running:
        assert service.stop() == 0 and "Traceback" not in service.error
        service.process.kill()


def test_images_with_several_labels(begin: Any, tmp_path: Path) -> None:
    from exported import shades

    folder = with_task(
        shades(tmp_path / "x"), "multi_label_classification", thresholds=[0.4, 0.001, 0.4, 0.001, 0.4]
    )  # fmt: skip
    service = begin(folder)
    assert service.ask("GET", "/model").json["answers"] == "labels"
    said = service.ask("POST", "/predict?top=3", *form(("a.png", image(0)), ("b.png", image(100)))).json["predictions"]
    # The logits are -80 (m - centre)^2: 0 at its own shade, -5 at the next one.
    assert said[0]["labels"] == [SHADES[0], SHADES[1]] and said[0]["name"] == "a.png"
    assert said[0]["top"][0] == {"class": SHADES[0], "probability": 0.5}
    assert said[0]["top"][1]["probability"] == pytest.approx(1 / (1 + math.exp(5)), rel=1e-3)
    assert len(said[0]["top"]) == 3 and said[1]["labels"] != said[0]["labels"]


def test_texts_of_a_table_with_numbers(begin: Any, tmp_path: Path) -> None:
    folder = with_task(words(tmp_path / "x"), "regression", mean=[10.0, 100.0], std=[0.5, 20.0])
    service = begin(folder)
    assert service.ask("GET", "/model").json["answers"] == "numbers"
    (said,) = service.ask("POST", "/predict", '{"text": "good fine bad"}').json["predictions"]
    assert said == {"name": "text 1", "values": {"sad": 11.0, "glad": 180.0}, "cut": False}  # logits 2 and 4
    table = 'id;Review\n1;"good, fine"\n2;dull\n3;\n'
    reply = service.ask("POST", "/predict", table, {"content-type": "text/csv; charset=utf-8"})
    assert [(one["name"], one["values"]["glad"]) for one in reply.json["predictions"]] == [
        ("row 2", 140.0), ("row 3", 100.0), ("row 4", 100.0),
    ]  # fmt: skip
    lines = '{"text": "bad"}\n{"text": "bad bad"}\n'
    reply = service.ask("POST", "/predict", lines, {"content-type": "application/x-ndjson"})
    assert [one["values"]["sad"] for one in reply.json["predictions"]] == [11.0, 12.0]
    for kind, bad, words_of_it in (
        ("text/csv", "a,b\n1,2\n", "text"), ("text/csv", "text,b\n1,2,3\n", "3 cells"), ("text/csv", "x\0y", "NUL"),
        ("application/x-ndjson", "{", "JSON"),
    ):  # fmt: skip
        refused = service.ask("POST", "/predict", bad, {"content-type": kind})
        assert refused.status == 400 and words_of_it in refused.json["error"], refused.json
        assert "/" not in refused.json["error"].split(";")[0], refused.json  # no path of the server
    many = "text\n" + "good\n" * 40
    assert service.ask("POST", "/predict", many, {"content-type": "text/csv"}).status == 413


def test_a_page_of_a_table_is_no_image(start: Start) -> None:
    refused = start().ask("POST", "/predict", "text\nx\n", {"content-type": "text/csv"})
    assert refused.status == 415
