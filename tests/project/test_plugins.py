"""Adding something edits no list: one component of each kind from outside the package, installed or by its path."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from figures import SOAK

SOURCE = Path(__file__).with_name("outside") / "acme_bits.py"
GROUPS = (
    "models", "data", "tasks", "methods", "optimizers", "schedules", "losses", "augments", "metrics", "exports",
    "figures", "reports", "loggers", "commands",
)  # fmt: skip
CHOSEN = [
    "acme_net", "--data", "acme_squares", "--optimizer", "acme_sgd", "--schedule", "acme_flat", "--loss", "acme_hinge",
    "--set", "augment.name=acme_mirror", "--log", "acme_log", "--max-steps", "4", "--batch-size", "16", "--seed", "3",
    "--device", "cpu",
]  # fmt: skip
STUDY = """
title: two of Acme
base:
  model: {name: acme_net}
  data: {name: acme_squares}
  train: {max_steps: 2}
runs:
  small: {model: {name: acme_net, width: 4}}
  large: {model: {name: acme_old_net, width: 8}}
figure: {name: acme_bars}
"""


def install(folder: Path, source: str, name: str = "acme_bits", groups: tuple[str, ...] = GROUPS) -> dict[str, str]:
    """A distribution of one module as pip would lay it down; the environment that has it on its path."""
    about = folder / f"{name}-1.0.dist-info"
    about.mkdir(parents=True)
    (folder / f"{name}.py").write_text(source)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"[bigmodel.{group}]\nbits = {name}\n" for group in groups]
    (about / "entry_points.txt").write_text("\n".join(lines))
    return {"PYTHONPATH": str(folder)}


@pytest.fixture(
    params=[
        pytest.param("installed", marks=pytest.mark.skipif(not SOAK, reason="a fresh Python each: BIGMODEL_SOAK=1")),
        "--import",
    ]
)
def bigmodel(request: Any, run_cli: Any, tmp_path: Path) -> Callable[..., Any]:
    """The command line that has Acme's package, or is given its file after the command's name."""
    if request.param == "installed":
        return installed(run_cli, tmp_path)
    return lambda *arguments: run_cli(*arguments, "--import", SOURCE)


def installed(run_cli: Any, folder: Path) -> Callable[..., Any]:
    variables = install(folder / "site", SOURCE.read_text())
    return lambda *arguments: run_cli(*arguments, fresh=True, env={**os.environ, **variables, "OMP_NUM_THREADS": "1"})


def test_an_installed_package_trains_and_is_evaluated(run_cli: Any, tmp_path: Path) -> None:
    bigmodel = installed(run_cli, tmp_path)
    assert "hello Ada" in bigmodel("acme-hello", "--name", "Ada").stdout
    done = bigmodel("train", *CHOSEN, "--out", "first")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "first/acme.log").read_text().split()[::3] == ["start", "end"]
    said = json.loads(bigmodel("eval", "first", "--metric", "acme_sure", "--json").stdout)
    assert said["by"] == "acme" and list(said["headline"]) == ["accuracy", "acme_margin", "acme_sure"]


def test_one_of_each_kind_from_zero_to_shipped(bigmodel: Callable[..., Any], tmp_path: Path) -> None:
    def done(*arguments: Any) -> str:
        found = bigmodel(*arguments)
        assert found.returncode == 0, found.stderr
        return str(found.stdout)

    assert "hello Ada" in done("acme-hello", "--name", "Ada")
    assert "Say hello.\n" in done("--help")
    done("train", *CHOSEN, "--out", "first")
    assert (tmp_path / "first/acme.log").read_text().split()[::3] == ["start", "end"]
    done("finetune", "--from", "first", "--method", "acme-all", "--max-steps", "2", "--out", "second", "--log", "csv")
    rows = (tmp_path / "second/metrics.csv").read_text().splitlines()
    assert len(rows) == 2 and "val_accuracy" in rows[0].split(",")
    said = json.loads(done("eval", "second", "--metric", "acme_sure", "--json"))
    assert said["by"] == "acme" and list(said["headline"]) == ["accuracy", "acme_margin", "acme_sure"]
    assert all(f["low"] <= f["value"] <= f["high"] for f in said["headline"].values())
    (tmp_path / "photos.squares").touch()
    assert "acme" in done("eval", "second", "--data", "photos.squares", "--json"), "who reads a path says so itself"
    done("export", "second", "--format", "acme_trace", "--seconds", "0", "--samples", "16", "--out", "shipped")
    assert "pipeline_tag: image-classification" in (tmp_path / "shipped/MODEL_CARD.md").read_text()
    (tmp_path / "study.yaml").write_text(STUDY)
    done("study", "study.yaml", "--out", "both")
    assert (tmp_path / "both/acme_bars.png").read_text() == "small large", "the old name of a model still means it"


def test_listings_show_plug_ins_and_load_no_torch(tmp_path: Path) -> None:
    environment = {**os.environ, **install(tmp_path / "site", SOURCE.read_text())}
    program = (
        "import sys; from bigmodel_cli.core import registry as r; print(all(any(f.module == 'acme_bits' for f in "
        f"getattr(r, group).found.values()) for group in {GROUPS}), "
        "'acme-hello' in r.commands.found, r.metrics.found['acme_sure'].meta['share'], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["True", "True", "True", "False"], done.stderr


def test_children_get_the_file_too_and_it_is_said_once(run_cli: Any, tmp_path: Path) -> None:
    environment = {**os.environ, "ACME_RUNS": str(tmp_path / "ranks"), "OMP_NUM_THREADS": "1"}
    arguments = ["--import", SOURCE, "train", *CHOSEN, "--nproc", "2", "--out", "two"]
    ranks = run_cli(*arguments, fresh=True, env=environment)  # forks of a process that has it would not run it
    assert ranks.returncode == 0, ranks.stderr
    assert ranks.stderr.count(f"{SOURCE}: running its code") == 1
    assert len(set((tmp_path / "ranks").read_text().split())) == 3, "the launcher and two ranks"
    pytest.importorskip("tokenizers")
    (tmp_path / "text.txt").write_text("to be or not to be\n" * 200_000)
    arguments = ["data", "tokenize", "text.txt", "--out", "shards", "--tokenizer", "byte", "--processes", "2"]
    made = run_cli(*arguments, "--import", SOURCE, variables={"ACME_RUNS": tmp_path / "processes"})
    assert made.returncode == 0, made.stderr
    assert len(set((tmp_path / "processes").read_text().split())) == 3


def test_a_checkpoint_without_its_plug_in_is_one_line(run_cli: Any, tmp_path: Path) -> None:
    assert run_cli("train", *CHOSEN, "--out", "first", "--import", SOURCE).returncode == 0
    alone = run_cli("eval", "first")
    assert alone.returncode == 2 and "unknown" in alone.stderr and "acme" in alone.stderr, alone.stderr
    assert "--import FILE.py" in alone.stderr and "install" in alone.stderr
    assert len(alone.stderr.splitlines()) == 2, "an error and a hint"


def test_a_logger_that_fails_does_not_lose_the_run(run_cli: Any) -> None:
    done = run_cli("train", *CHOSEN, "--log", "acme_broken_log", "--out", "first", "--import", SOURCE)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("--log acme_broken_log failed and is off from here: OSError") == 1


TAKEN = """
from bigmodel_cli.core.registry import models

@models.register(task="image_classification")
def resnet18(spec):
    \"\"\"Not the one you know.\"\"\"
"""
BROKEN = {
    "no such file": (None, "no such file"),
    "a name that is taken": (TAKEN, "bad.py:4: ValueError: model 'resnet18' is already registered by bigmodel_cli"),
    "no Python": ("def f(:\n", "bad.py:1: SyntaxError"),
    "an error of its own": ("import os\nraise KeyError('x')\n", "bad.py:2: KeyError: 'x'"),
    "it leaves": ("raise SystemExit(0)\n", "bad.py:1: SystemExit: 0"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one_line(name: str, run_cli: Any, tmp_path: Path) -> None:
    source, message = BROKEN[name]
    if source is not None:
        (tmp_path / "bad.py").write_text(source)
    done = run_cli("models", "--import", "bad.py")
    assert done.returncode == 2 and done.stdout == ""
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0] and "bad.py" in errors[0], done.stderr
    assert "Traceback" not in done.stderr


INSTALLED = {
    "a name that is taken": (TAKEN, "the plug-in bad: model 'resnet18' is already registered by bigmodel_cli.models"),
    "no Python": ("@models.register()\ndef f(:\n", "bad.py:2: "),
    "it does not import": (
        "from bigmodel_cli.core.registry import models\n@models.register()\ndef odd(): ...\nimport nothing_like_it\n",
        "bad.py:4: ModuleNotFoundError",
    ),
}


@pytest.mark.parametrize("name", INSTALLED)
def test_a_broken_distribution_is_one_line(name: str, run_cli: Any, tmp_path: Path) -> None:
    source, message = INSTALLED[name]
    variables = install(tmp_path / "site", source, "bad", ("models",))
    done = run_cli("train", "odd", "--data", "digits", fresh=True, env={**os.environ, **variables})
    assert done.returncode == 2 and done.stderr.startswith("error: ") and message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
