"""``eval --membership`` from end to end: an overfitted model gives its training data away, a private one does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import figures
import pytest
from conftest import Run

NOISE = ["--data", "synthetic_images", "--set", "data.count=1000", "--set", "data.size=12", "--set", "data.channels=1"]
TRAIN = ["train", "mlp", *NOISE, "--set", "data.classes=4", "--epochs", 25, "--batch-size", 80, "--lr", "3e-3"]


def attack(run_cli: Run, folder: str) -> Any:
    shown = run_cli("eval", f"{folder}/last.pt", "--membership", "--shadows", 4, "--json")
    assert shown.returncode == 0, shown.stderr
    return json.loads(shown.stdout)["membership"]


def test_an_overfitted_model_is_attacked(run_cli: Run, tmp_path: Path) -> None:
    assert run_cli(*TRAIN, "--out", "over").returncode == 0
    over = attack(run_cli, "over")
    found = over["attacks"]["lira"]
    assert found["auc"]["low"] > 0.6
    assert found["tpr_at_0.01_fpr"]["value"] >= 5 * 0.01
    assert "bound" not in over and over["members"] == over["others"]
    files = sorted((tmp_path / "over" / "membership").rglob("*.npz"))
    before = [file.stat().st_mtime_ns for file in files]
    assert len(files) == 4
    assert attack(run_cli, "over") == over  # again from what is kept
    assert [file.stat().st_mtime_ns for file in files] == before
    audited = run_cli("audit", "synthetic_images", "over/last.pt", "--shadows", 4, "--json")
    assert audited.returncode == 1 and json.loads(audited.stdout)["membership"] == {**over, "found": True}
    refused = run_cli("eval", "over/last.pt", "--membership", "--split", "train")
    assert refused.returncode == 2 and "was not trained on" in refused.stderr


@pytest.mark.skipif(not figures.SOAK, reason="five private trainings, half a minute: under BIGMODEL_SOAK=1")
def test_a_private_model_stays_within_its_bound(run_cli: Run) -> None:
    """The same network and data as above, where the attack succeeds."""
    private = ["--private", 1, "--set", "privacy.accountant=rdp"]
    assert run_cli(*TRAIN, *private, "--out", "private").returncode == 0
    found = attack(run_cli, "private")
    told = found["attacks"]["lira"]
    assert told["auc"]["low"] < 0.6  # its noise differs from run to run
    assert told["tpr_at_0.01_fpr"]["low"] <= found["bound"]["tpr_at_0.01_fpr"] < 0.05
