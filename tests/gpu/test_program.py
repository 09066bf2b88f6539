"""`make gpu` on a machine without a GPU: the same program at small sizes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.py"


def gpu(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(PROGRAM), "--small", *words], capture_output=True, text=True)


def test_steps_write_their_figures_and_are_not_run_again(tmp_path: Path) -> None:
    out = tmp_path / "r.md"
    done = gpu("--data", str(tmp_path), "--out", str(out), "--only", "nccl")
    assert done.returncode == 0, done.stdout
    text = out.read_text()
    assert "small sizes" in text and "| fsdp, gloo | 10 steps, losses" in text
    again = gpu("--data", str(tmp_path), "--out", str(out), "--only", "nccl")
    assert again.returncode == 0 and "nccl" not in again.stdout


def test_a_step_that_fails_is_named(tmp_path: Path) -> None:
    out = tmp_path / "r.md"
    done = gpu("--data", str(tmp_path / "missing"), "--out", str(out), "--only", "finetune")
    assert done.returncode == 1 and "did not end well: finetune" in done.stderr
    assert "**did not end well**" in out.read_text()
