"""The proof: an export that does not answer like its source is not there, and what was there stays."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bigmodel_cli.core.errors import BigmodelError, InputError
from bigmodel_cli.core.registry import exports
from bigmodel_cli.export import proof as proving
from bigmodel_cli.export.proof import Proof, export_and_prove

FORMATS = exports.names()
CARRY = {"arch": "line", "classes": ["a", "b", "c"]}
Runner = Callable[[Tensor], Tensor]


def line() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


def model() -> nn.Module:
    torch.manual_seed(0)
    return line()


def inputs(count: int = 10) -> list[Tensor]:
    return list(torch.randn(count, 4, generator=torch.Generator().manual_seed(1)).split(4))


def prove(name: str, path: Path, **changes: Any) -> Proof:
    given = {"model": model(), "batches": inputs(), "carry": CARRY, "build": line}
    return export_and_prove(name, path=path, **{**given, **changes})


def sabotage(monkeypatch: pytest.MonkeyPatch, name: str, spoil: Callable[[Tensor], Tensor]) -> None:
    """The file's answers go through `spoil`."""
    entry = exports.get(name)
    honest = entry.meta["run"]

    def run(path: Path, build: Callable[[], nn.Module]) -> Runner:
        answer = honest(path, build)
        return lambda x: spoil(torch.as_tensor(answer(x)))

    monkeypatch.setitem(exports._entries, name, dataclasses.replace(entry, meta={**entry.meta, "run": run}))


def shifted_first(y: Tensor) -> Tensor:
    y = y.clone()
    y[0, 0] += 0.01
    return y


def wrong_when_alone(y: Tensor) -> Tensor:
    return y + 1 if len(y) == 1 else y


def lost(y: Tensor) -> Tensor:
    return torch.full_like(y, float("nan"))


CASES = [(name, shifted_first) for name in FORMATS]
CASES += [("safetensors", wrong_when_alone), ("safetensors", lost)]


@pytest.mark.parametrize(("name", "spoil"), CASES)
def test_a_file_that_answers_otherwise_fails_and_the_old_one_stays(
    name: str, spoil: Callable[[Tensor], Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"model{exports.get(name).meta['suffix']}"
    sabotage(monkeypatch, name, spoil)
    assert not prove(name, path).passed
    assert list(tmp_path.iterdir()) == []

    monkeypatch.undo()
    assert prove(name, path).passed
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert len(before) == 2
    sabotage(monkeypatch, name, spoil)
    assert not prove(name, path).passed
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_that_does_not_run_or_gives_another_shape(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model"
    sabotage(monkeypatch, name, lambda y: y[:, :1])  # a subtraction alone would broadcast it
    with pytest.raises(BigmodelError, match=r"does not run: a batch of 4 gives \(4, 1\), expected \(4, 3\)") as caught:
        prove(name, path)
    assert caught.value.exit_code == 1 and list(tmp_path.iterdir()) == []


def test_the_figures_are_those_of_the_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def swap(y: Tensor) -> Tensor:
        """The answer of the first input of each batch is another class; by 8 in two of its three logits."""
        best, other = int(y[0].argmax()), int(y[0].argmin())
        y = y.clone()
        y[0, best] -= 8
        y[0, other] += 8
        return y

    sabotage(monkeypatch, "safetensors", swap)
    found = prove("safetensors", tmp_path / "m.safetensors")  # 10 inputs in batches of 4, 4 and 2
    assert not found.passed and found.inputs == 10
    assert found.largest_difference == pytest.approx(8, rel=1e-5)
    assert found.mean_difference == pytest.approx(3 * 2 * 8 / 30, rel=1e-5)
    assert found.equal_answers == pytest.approx(0.7)


@pytest.mark.parametrize(("tolerance", "passes"), [(0.02, True), (0.005, False)])
def test_the_tolerance_decides(tolerance: float, passes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sabotage(monkeypatch, "safetensors", shifted_first)
    path = tmp_path / "m.safetensors"
    found = prove("safetensors", path, tolerance=tolerance)
    assert found.passed == path.exists() == passes
    assert found.largest_difference == pytest.approx(0.01, rel=1e-3) and found.tolerance == tolerance


@pytest.mark.parametrize("name", FORMATS)
def test_the_json_beside_describes_the_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    found = prove(name, path)
    beside = json.loads((tmp_path / "model.bin.json").read_text())
    assert beside == {**CARRY, "file": "model.bin", "proof": found.to_dict()}
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    # What one account exports another may read, as the umask says.
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "model.bin.json").stat().st_mode)


def test_inputs_that_cannot_prove_anything(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no inputs"):
        prove("safetensors", tmp_path / "m.safetensors", batches=[])
    with pytest.raises(InputError, match="no inputs"):
        prove("safetensors", tmp_path / "m.safetensors", batches=[torch.zeros(0, 4)])
    with pytest.raises(InputError, match="nowhere: no such folder"):
        prove("safetensors", tmp_path / "nowhere" / "m.safetensors")
    with pytest.raises(InputError, match="a folder"):
        prove("safetensors", tmp_path)
    with pytest.raises(InputError, match="did you mean onnx"):
        prove("onxx", tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_batch_sizes_tried_are_the_inputs_and_one_and_three(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    sabotage(monkeypatch, "safetensors", lambda y: seen.append(len(y)) or y)  # type: ignore[func-returns-value]
    assert prove("safetensors", tmp_path / "m.safetensors").passed
    assert sorted(seen) == [1, 2, 3, 4, 4]


def test_interrupted_while_comparing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(proving, "_compare", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prove("safetensors", tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", FORMATS)
def test_a_full_disk_is_exit_3_and_the_old_export_stays(name: str, tmp_path: Path) -> None:
    """In a process whose files may not grow past 100 kB, as on a full disk; the model is 1 MB."""
    program = """
import resource, signal, sys, torch
from pathlib import Path
from bigmodel_cli.core.errors import BigmodelError
from bigmodel_cli.export.proof import export_and_prove
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
build = lambda: torch.nn.Linear(500, 500)
try:
    export_and_prove(sys.argv[1], build(), [torch.randn(4, 500)], Path("model.bin"), {}, build)
except BigmodelError as error:
    print(error.line)
    sys.exit(error.exit_code)
"""
    (tmp_path / "model.bin").write_text("old")
    done = subprocess.run(
        [sys.executable, "-c", program, name], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert done.stdout.startswith("model.bin: cannot write: ") and done.stderr == ""
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("model.bin", "old")]
