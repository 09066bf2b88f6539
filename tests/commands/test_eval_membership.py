"""``eval --membership`` from end to end: an overfitted model gives its training data away, a private one does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conftest import Run

NOISE = ["--data", "synthetic_images", "--set", "data.count=1000", "--set", "data.size=12", "--set", "data.channels=1"]


def attack(run_cli: Run, folder: str) -> Any:
    shown = run_cli("eval", f"{folder}/last.pt", "--membership", "--shadows", 4, "--json")
    assert shown.returncode == 0, shown.stderr
    return json.loads(shown.stdout)["membership"]


def test_an_overfitted_model_is_attacked_and_a_private_one_stays_within_its_bound(run_cli: Run, tmp_path: Path) -> None:
    common = [*NOISE, "--set", "data.classes=4", "--epochs", 25, "--batch-size", 80, "--lr", "3e-3"]
    assert run_cli("train", "mlp", *common, "--out", "over").returncode == 0
    assert run_cli("train", "mlp", *common, "--private", 1, "--set", "privacy.accountant=rdp",
                   "--out", "private").returncode == 0  # fmt: skip
    over, private = attack(run_cli, "over"), attack(run_cli, "private")
    found = over["attacks"]["lira"]
    assert found["auc"]["low"] > 0.6
    assert found["tpr_at_0.01_fpr"]["value"] >= 5 * 0.01
    assert "bound" not in over and over["members"] == over["others"]
    told = private["attacks"]["lira"]
    assert told["auc"]["low"] < min(0.6, found["auc"]["low"])  # its noise differs from run to run
    assert told["tpr_at_0.01_fpr"]["low"] <= private["bound"]["tpr_at_0.01_fpr"] < 0.05
    files = sorted((tmp_path / "over" / "membership").rglob("*.npz"))
    before = [file.stat().st_mtime_ns for file in files]
    assert len(files) == 4
    assert attack(run_cli, "over") == over  # again from what is kept
    assert [file.stat().st_mtime_ns for file in files] == before
    audited = run_cli("audit", "synthetic_images", "over/last.pt", "--shadows", 4, "--json")
    assert audited.returncode == 1 and json.loads(audited.stdout)["membership"] == {**over, "found": True}
    refused = run_cli("eval", "over/last.pt", "--membership", "--split", "train")
    assert refused.returncode == 2 and "was not trained on" in refused.stderr
