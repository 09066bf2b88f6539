"""A run again from its record, and a recipe cut in two: equal to the bit, or what is not."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import environment

from bigmodel_cli.core.registry import augments
from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.engine.checkpoint import checkpoint
from bigmodel_cli.engine.experiments.reproduce import verify_resume

SHORT = ["train", "mlp", "--data", "digits", "--max-steps", 12, "--set", "model.dropout=0.1"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import subprocess
    import sys

    folder = tmp_path_factory.mktemp("finished")
    command = [sys.executable, "-m", "bigmodel_cli", *map(str, SHORT), "--out", "run"]
    subprocess.run(command, cwd=folder, env=environment(), check=True, capture_output=True)
    return folder / "run"


def edited(finished: Path, to: Path, change: Any) -> Path:
    shutil.copytree(finished, to)
    state = checkpoint.load(to / "last.pt")
    change(state)
    checkpoint.save(to / "last.pt", state)
    return to


def test_the_same_weights(finished: Path, run_cli: Any) -> None:
    done = run_cli("reproduce", finished, "--out", "again", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["same"] is True and answer["folder"] == "again" and answer["drift"] == []


def test_what_drifted_is_listed(finished: Path, run_cli: Any, tmp_path: Path) -> None:
    def change(state: Any) -> None:
        state["model"]["head.bias"][0] += 1e-6
        state["meta"]["env"]["torch"] = "1.0"
        state["meta"]["origin"]["machine"]["cores"] = 999

    run = edited(finished, tmp_path / "run", change)
    text = run_cli("reproduce", run, "--out", "again")
    assert text.returncode == 1 and "the weights differ" in text.stdout, text.stderr
    for part in ("torch", "1.0", torch.__version__, "machine.cores", "999", "1 of 4 tensors"):
        assert part in text.stdout


def test_other_data_and_unfinished_runs_are_bad_input(finished: Path, run_cli: Any, tmp_path: Path) -> None:
    run = edited(finished, tmp_path / "run", lambda state: state["meta"]["data"].update(fingerprint="f" * 64))
    done = run_cli("reproduce", run)
    assert done.returncode == 2 and "trained on data ffffffffffffffff; the data now is 0b7e9c3202d7bcd2" in done.stderr
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps({**status, "state": "failed"}))
    done = run_cli("reproduce", run)
    assert done.returncode == 2 and "the run is failed; expected one that is done" in done.stderr
    assert run_cli("reproduce", tmp_path).returncode == 2
    assert not (tmp_path / "runs").exists()


def test_the_record_names_the_commit_and_the_machine(finished: Path, tmp_path: Path, run_cli: Any) -> None:
    origin = checkpoint.load(finished / "last.pt")["meta"]["origin"]
    assert origin["machine"]["cores"] >= 1 and origin["machine"]["memory_gb"] > 0
    import subprocess

    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run([*git, "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / "a").write_text("1")
    subprocess.run([*git, "add", "a"], cwd=tmp_path, check=True)
    subprocess.run([*git, "commit", "-qm", "a"], cwd=tmp_path, check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], cwd=tmp_path, check=True, capture_output=True, text=True)
    (tmp_path / "a").write_text("2")
    assert run_cli(*SHORT, "--out", "run").returncode == 0
    found = checkpoint.load(tmp_path / "run/last.pt")["meta"]["origin"]["git"]
    assert found == {"commit": head.stdout.strip(), "dirty": True}


def test_verify_resume_on_a_recipe_of_ones_own(run_cli: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("model: {name: mlp, hidden: [8], dropout: 0.5}\naugment: {name: shift}\n")
    done = run_cli("verify-resume", "mine.yaml", "--steps", 4)
    assert done.returncode == 0 and "resume is exact" in done.stdout, done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["mine.yaml"]


@pytest.fixture
def careless() -> Iterator[str]:
    """An augmentation whose noise is keyed by nothing."""

    @augments.register("careless")
    def careless() -> Any:
        """Noise from a generator that no checkpoint knows."""
        source = random.Random(1)
        return lambda x, key, size=None: x.float() + source.random()

    yield "careless"
    del augments._entries["careless"], augments.found["careless"]


def test_verify_resume_can_fail(careless: str, tmp_path: Path) -> None:
    """Negative control: what is not in a checkpoint makes the halves another run."""
    recipe = resolve([Layer("test", {"model": {"name": "mlp", "hidden": [4]}, "augment": {"name": careless}})]).recipe
    found, count = verify_resume(recipe, 4, tmp_path, lambda event: None)
    names = {d.what for d in found}
    assert {"model.head.bias", "optimizer.state.0.exp_avg"} <= names and len(names) < count
    assert not any(name.startswith("rng") for name in names)
