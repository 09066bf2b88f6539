"""RLIMIT_FSIZE stands for the full disk: the real command ends in one line, and the old checkpoint is as it was."""

from __future__ import annotations

from pathlib import Path

import figures
from nursery import Nursery

from bigmodel_cli.engine.checkpoint import checkpoint

OPTIONS = ["--data", "digits", "--precision", "fp32", "--set", "model.hidden=[300]"]


def old_lost(tmp_path: Path, sabotage: str | None = None) -> tuple[int, int]:
    """Sizes tried, and at how many the old checkpoint was lost."""
    with Nursery(tmp_path) as nursery:
        code, child = nursery.run("train", "mlp", *OPTIONS, "--epochs", "1", "--out", "run")
        assert code == 0, child.error
        file, lost = tmp_path / "run/last.pt", 0
        size, before = file.stat().st_size, checkpoint.digest(checkpoint.load(file))
        limits = [size * (2 * i + 1) // 20 for i in range(10)] if sabotage is None else [size // 2]
        for limit in limits:
            arguments = ["train", "--resume", "--out", "run", "--epochs", "3"]
            code, child = nursery.run(*arguments, sabotage=sabotage, largest_file=limit)
            try:
                lost += any(checkpoint.digest(checkpoint.load(p)) != before for p in (tmp_path / "run").glob("*.pt"))
            except Exception:
                lost += 1
            if sabotage is None:
                assert code == 3 and "Traceback" not in child.error, child.error
                assert "bytes needed" in child.error and " free" in child.error
                assert ".pt: " in child.error, child.error
                assert not list((tmp_path / "run").glob(".*.tmp"))
    return len(limits), lost


def test_the_old_checkpoint_survives_a_full_disk(tmp_path: Path) -> None:
    tried, lost = old_lost(tmp_path)
    figures.record("full disk", tried, lost, "each ended with exit 3, one line and no temporary file")
    assert lost == 0


def test_negative_control_in_place_loses_it(tmp_path: Path) -> None:
    tried, lost = old_lost(tmp_path, "in-place")
    figures.record("full disk: saved in place", tried, lost, control=True)
    assert lost == tried
