"""The page of a run: one file, nothing loaded from anywhere, and nothing in it that a name can break."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from bigmodel_cli.core.errors import MachineError
from bigmodel_cli.core.files.event_log import read_events
from bigmodel_cli.insight.report import write_report

VOID = {"meta", "line", "circle", "polyline"}


class Page(HTMLParser):
    """Tags that were opened, their attributes, and the text; a tag closed out of order is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def events(count: int, **changes: Any) -> list[dict[str, Any]]:
    return [
        {"event": "epoch", "epoch": i + 1, "step": 469 * (i + 1), "train_loss": 1 / (i + 1), "val_loss": 1.1 / (i + 1),
         "val_accuracy": 1 - 0.5 / (i + 1), "lr": 0.1 * (count - i), "samples_per_second": 1000.0, **changes}
        for i in range(count)
    ]  # fmt: skip


def page(path: Path, **changes: Any) -> tuple[str, Page]:
    given = {"title": "cnn on mnist", "recipe_text": "model:\n  name: cnn\n", "events": events(5), "final": {}}
    write_report(path, **{**given, **changes})
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def test_curves_results_and_recipe_are_there(tmp_path: Path) -> None:
    final = {"event": "end", "val_accuracy": 0.98765, "steps": 2345}
    text, parsed = page(tmp_path / "report.html", final=final)
    assert parsed.open == [] and parsed.tags.count("svg") == 4
    assert parsed.tags.count("polyline") == 5  # train and val loss, val accuracy, learning rate, throughput
    for part in (
        "cnn on mnist",
        "train loss",
        "val loss",
        "val accuracy",
        "learning rate",
        "98.77%",
        "2345",
        "name: cnn",
    ):
        assert part in parsed.text
    assert "color-scheme: light dark" in text
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_nothing_is_loaded_from_outside(tmp_path: Path) -> None:
    text, parsed = page(tmp_path / "report.html")
    assert not re.search(r"https?:|//[a-z]|url\(|@import", text)
    assert not {"script", "link", "img", "iframe", "object"} & set(parsed.tags)
    assert not [a for a in parsed.attributes if a[1] in ("src", "href", "xlink:href") or a[1].startswith("on")]


@pytest.mark.parametrize("place", ["title", "recipe", "result", "metric"])
def test_markup_from_outside_is_text(place: str, tmp_path: Path) -> None:
    evil = '</title></pre></table><script>alert("x")</script><img src=x onerror=alert(1)>'
    changes: dict[str, Any] = {
        "title": {"title": evil},
        "recipe": {"recipe_text": evil},
        "result": {"final": {evil: evil}},
        "metric": {"events": events(3, **{f'val_"><{evil}': 0.5})},
    }[place]
    text, parsed = page(tmp_path / "report.html", **changes)
    assert "<script" not in text and not {"script", "img"} & set(parsed.tags) and parsed.open == []
    assert 'alert("x")' in parsed.text


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None, "a lot"])
def test_a_value_that_is_no_number_leaves_the_curve_and_nothing_else(bad: object, tmp_path: Path) -> None:
    broken = events(4)
    broken[2]["train_loss"] = bad
    _, parsed = page(tmp_path / "report.html", events=broken)
    lines = [value.split() for tag, name, value in parsed.attributes if (tag, name) == ("polyline", "points")]
    assert [len(line) for line in lines] == [3, 4, 4, 4, 4]
    numbers = [float(n) for line in lines for point in line for n in point.split(",")]
    assert all(0 <= n <= 520 for n in numbers)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_runs_of_few_epochs(count: int, tmp_path: Path) -> None:
    text, parsed = page(tmp_path / "report.html", events=events(count))
    assert parsed.tags.count("svg") == (4 if count else 0) and "nan" not in text


def test_points_lie_where_their_values_are(tmp_path: Path) -> None:
    _, parsed = page(tmp_path / "report.html", events=events(5))
    lines = [value.split() for tag, name, value in parsed.attributes if (tag, name) == ("polyline", "points")]
    xs, ys = zip(*((float(p.split(",")[0]), float(p.split(",")[1])) for p in lines[0]), strict=True)
    assert list(xs) == sorted(xs) and list(ys) == sorted(ys)  # the loss falls, and y grows downwards on a screen


def test_a_page_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    page(path)
    before = path.read_bytes()

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(MachineError, match="No space left on device"):
        page(path, title="another")
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_events_survive_a_line_that_a_kill_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = "".join(json.dumps(e) + "\n" for e in events(3))
    path.write_bytes(whole.encode() + '{"event": "epoch", "note": "é'.encode()[:-1])
    assert read_events(path) == events(3)
    path.write_text(whole + "12\nnull\n")
    assert read_events(path) == events(3)
