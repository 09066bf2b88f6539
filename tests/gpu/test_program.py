"""`make gpu` on a machine without a GPU: the same program at small sizes."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.py"
Gpu = Callable[..., tuple[int | str | None, str]]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Gpu:
    """The program in this process, which has torch; its steps are processes. Gives what it exits with, and stdout."""

    def run(*words: str) -> tuple[int | str | None, str]:
        monkeypatch.setattr(sys, "argv", [str(PROGRAM), "--small", *words])
        try:
            runpy.run_path(str(PROGRAM), run_name="__main__")
        except SystemExit as error:
            return error.code, capsys.readouterr().out
        return 0, capsys.readouterr().out

    return run


def test_steps_write_their_figures_and_are_not_run_again(gpu: Gpu, tmp_path: Path) -> None:
    out = tmp_path / "r.md"
    code, shown = gpu("--data", str(tmp_path), "--out", str(out), "--only", "nccl")
    assert code == 0, shown
    text = out.read_text()
    assert "small sizes" in text and "| fsdp, gloo | 10 steps, losses" in text
    code, shown = gpu("--data", str(tmp_path), "--out", str(out), "--only", "nccl")
    assert code == 0 and "nccl" not in shown


def test_a_step_that_fails_is_named(gpu: Gpu, tmp_path: Path) -> None:
    out = tmp_path / "r.md"
    code, _ = gpu("--data", str(tmp_path / "missing"), "--out", str(out), "--only", "finetune")
    assert isinstance(code, str) and "did not end well: finetune" in code  # Python prints it, and exits with 1
    assert "**did not end well**" in out.read_text()
