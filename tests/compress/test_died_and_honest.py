"""A runtime that crashes is a failed try with its name; and the figures say what int8 gained, and what grew."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Run

from bigmodel_cli.commands.isolation.foreign_runtime import runs_export, runtime_died
from bigmodel_cli.compress.trial import Point, fp32_of, remarks

INT8 = [{"method": "int8-onnx", "final": True}]


@pytest.fixture
def trained(run_cli: Run, tmp_path: Path) -> Path:
    """A perceptron on digits: channels to prune it has none, so that a search is short."""
    done = run_cli("train", "perceptron", "--data", "digits", "--epochs", 1, "--out", "run")
    assert done.returncode == 0, done.stderr
    return tmp_path / "run"


def left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name.startswith("."))


def test_an_export_that_crashes(trained: Path, run_cli: Run, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    done = run_cli("export", trained, "--format", "openvino", "--out", "shipped", sabotage="openvino-crashes")
    assert done.returncode == 3 and "--format openvino: its process was ended by SIGSEGV" in done.stderr
    assert not (tmp_path / "shipped").exists() and left(tmp_path) == []


def test_an_export_that_hangs_or_crashes_as_it_is_used(trained: Path, run_cli: Run, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    given = ("export", trained, "--format", "openvino", "--out", "shipped")
    done = run_cli(*given, sabotage="openvino-hangs", variables={"BIGMODEL_RUNTIME_LIMIT": "0.5"})
    assert done.returncode == 3, done.stderr
    assert "its process was ended by SIGALRM: a call into it took more than 0.5 s" in done.stderr
    assert not (tmp_path / "shipped").exists() and left(tmp_path) == []
    done = run_cli(*given, variables={"BIGMODEL_RUNTIME_LIMIT": "soon"})
    assert done.returncode == 2 and "BIGMODEL_RUNTIME_LIMIT=soon; expected seconds" in done.stderr
    done = run_cli(*given, variables={"BIGMODEL_RUNTIME_LIMIT": "60"})
    assert done.returncode == 0 and (tmp_path / "shipped").is_dir(), done.stderr
    assert run_cli("data", "sample", "digit.png").returncode == 0
    for command in (("predict", "shipped", "digit.png"), ("eval", "shipped"), ("compare", "shipped", trained)):
        done = run_cli(*command, sabotage="openvino-hangs", variables={"BIGMODEL_RUNTIME_LIMIT": "0.5"})
        said = "shipped: its process was ended by SIGALRM: a call into it took more than 0.5 s"
        assert done.returncode == 3 and said in done.stderr, (command, done.stderr)
    done = run_cli("predict", "shipped", "digit.png", variables={"BIGMODEL_RUNTIME_LIMIT": "60"})
    assert done.returncode == 0, done.stderr
    for command in (("predict", "shipped", "digit.png"), ("eval", "shipped"), ("compare", "shipped", trained)):
        done = run_cli(*command, sabotage="openvino-crashes")
        assert done.returncode == 3 and not done.stdout, (command, done.stderr)
        error, hint = done.stderr.splitlines()[-2:]
        assert error == "error: shipped: its process was ended by SIGSEGV; a fault in the runtime", done.stderr
        assert hint.startswith("hint: ") and done.stderr.count("error") == 1
    done = run_cli("predict", "shipped", "digit.png", sabotage="openvino-crashes-unheard")
    assert done.returncode == 3 and "ended by SIGSEGV" in done.stderr, done.stderr
    done = run_cli("predict", "shipped", "digit.png", sabotage="openvino-crashes-here")  # negative control
    assert done.returncode == -signal.SIGSEGV and "error" not in done.stderr


def test_what_is_at_an_address_may_be_an_export(tmp_path: Path) -> None:
    """It is copied in the child, so that nothing of it can be seen before."""
    for given in ({"checkpoint": Path("s3://bucket/shipped")}, {"runs": [tmp_path, Path("s3://bucket/shipped")]}):
        assert runs_export(given)
        error = runtime_died(given, 1, "SIGSEGV")
        assert error.line == "s3:/bucket/shipped: its process was ended by SIGSEGV; a fault in the runtime"
    assert not runs_export({"checkpoint": tmp_path}) and not runs_export({"runs": [tmp_path / "a.pt"]})


def test_a_method_that_crashes(trained: Path, run_cli: Run, tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    out = ("--method", "int8-openvino", "--out", "small")
    done = run_cli("compress", trained, *out, sabotage="openvino-crashes")
    assert done.returncode == 3 and "int8-openvino: its process was ended by SIGSEGV" in done.stderr
    assert not (tmp_path / "small").exists() or left(tmp_path / "small") == []


def test_a_search_goes_on_without_the_try_that_crashed(trained: Path, run_cli: Run, tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    arguments = ("compress", trained, "--max-drop", 100, "--out", "found", "--json")
    done = run_cli(*arguments, sabotage="openvino-crashes")
    assert done.returncode == 0, done.stderr
    assert "int8-openvino: its process was ended by SIGSEGV; going on without it" in done.stderr
    found = json.loads(done.stdout)
    assert "int8-openvino: its process was ended by SIGSEGV" in found["skipped"]
    names = [point["name"] for point in found["points"]]
    assert {"onnx-fp32", "int8-onnx"} <= set(names) and not any("openvino" in name for name in names)
    assert found["chosen"] and (tmp_path / "found/frontier.json").is_file()
    assert left(tmp_path / "found/tries/int8-openvino") == []


def point(name: str, size: int, latency: float, steps: Any = (), runtime: str | None = None) -> Point:
    both = {"1": latency, "32": latency}
    return Point(name, name, list(steps), size, both, {"1": 9.6, "32": 9.6}, "accuracy", 0.9, 0.0, 1, runtime)


def test_int8_is_held_against_fp32_in_the_same_runtime() -> None:
    """9.6x of torch was the runtime's: fp32 in it was faster still."""
    source, fp32 = point("source", 400, 9.6), point("onnx-fp32", 410, 0.8, runtime="onnx")
    int8 = point("int8-onnx", 110, 1.0, INT8, "onnx")
    other = point("openvino-fp32", 410, 2.0, runtime="openvino")
    assert fp32_of(int8, [other, fp32, int8]) is fp32
    lines = remarks(source, [other, fp32, int8])
    assert "int8-onnx against onnx-fp32, fp32 in the same runtime: 0.8x as fast at batch 1 (slower)" in lines[-1]
    assert "3.7x smaller" in lines[-1]
    pruned = replace(int8, steps=[{"method": "prune"}, *INT8])
    assert fp32_of(pruned, [fp32, pruned]) is None  # another network


def test_what_grew_says_so() -> None:
    source = point("source", 400, 9.6)
    assert remarks(source, [point("a", 300, 1.0)]) == []
    (line,) = remarks(source, [point("a", 500_000, 1.0)])
    assert line == "a is larger than the checkpoint's weights: 0.50 MB, not 0.00 MB"
    larger = remarks(source, [point("f", 300, 1.0, runtime="onnx"), point("q", 390, 1.0, INT8, "onnx")])
    assert "1.3x larger" in larger[0]


def test_the_command_shows_both(trained: Path, run_cli: Run) -> None:
    pytest.importorskip("onnxruntime")
    done = run_cli("compress", trained, "--method", "int8-onnx", "--out", "small", "--json")
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    assert values["fp32"]["name"] == "onnx-fp32" and values["fp32"]["runtime"] == values["runtime"] == "onnx"
    assert values["fp32"]["bytes"] > 0 and not values["fp32"]["steps"]
