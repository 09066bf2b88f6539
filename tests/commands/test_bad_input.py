"""Bad input: one line that says what and what to do, the right exit code, no traceback, nothing left behind."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

CASES = [
    (["train", "resnet81", "--data", "digits"], 2, "unknown model 'resnet81'; did you mean resnet"),
    (["train", "mlp", "--data", "mnits"], 2, "unknown data set 'mnits'; did you mean"),
    (["train", "mlp", "--data", "digits", "--lr", "-1"], 2, "--lr: optimizer.lr = -1.0; "),
    (["train", "mlp", "--data", "digits", "--optimizer", "adamm"], 2, "unknown optimizer 'adamm'; did you mean adam"),
    (["train", "mlp", "--set", "train.epoch=3"], 2, "--set: unknown key train.epoch; did you mean epochs"),
    (["train", "mlp", "--set", "trian.epochs=3"], 2, "unknown section 'trian'; did you mean train"),
    (["train", "mlp", "--set", "nonsense"], 2, "expected section.key=value"),
    (["train", "mlp", "--set", "model.activation=swish"], 2, "'sigmoid', 'tanh', 'relu', 'gelu' or 'silu'"),
    (["train", "airbench", "--data", "digits"], 2, "airbench on 8x8 images; expected at least 16x16"),
    (["train"], 2, "no model named"),
    (["train", "mlp", "--resume"], 2, "--resume: no run named; expected --out"),
    (["train", "mlp", "--device", "cuda:7"], 3, "--device cuda:7: "),
    (["train", "mlp", "--device", "tpu"], 2, "placement.device = 'tpu'"),
    (["train", "missing.yaml"], 2, "missing.yaml: no such file"),
    (["train", "recipe.yaml"], 2, "recipe.yaml:4: unknown key optimizer.momentm; did you mean momentum?"),
    (["train", "twice.yaml"], 2, "twice.yaml:3: duplicate key 'name'"),
    (["train", "mlp", "--out", "used"], 2, "used: the folder is not empty"),
    (["eval", "missing.pt"], 2, "missing.pt: no such file"),
    (["eval", "foreign.pt"], 2, "foreign.pt: not a checkpoint, or truncated"),
    (["finetune", "--from", "foreign.pt"], 2, "foreign.pt: not a checkpoint, or truncated"),
    (["eval", "used"], 2, "used: no checkpoint in this folder"),
    (["export", "foreign.pt", "--format", "onx"], 2, "unknown export format 'onx'; did you mean onnx"),
    (["env-check", "--require", "cudda"], 2, "--require cudda: no such check"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text("model:\n  name: mlp\noptimizer:\n  momentm: 0.9\n  name: momentum\n")
    (tmp_path / "twice.yaml").write_text("model:\n  name: mlp\n  name: cnn\n")
    (tmp_path / "foreign.pt").write_bytes(random.Random(0).randbytes(2000))
    (tmp_path / "used").mkdir()
    (tmp_path / "used/notes.txt").write_text("mine")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "code", "message"), CASES, ids=lambda v: " ".join(v) if isinstance(v, list) else ""
)
def test_one_line_and_the_exit_code(arguments: list[str], code: int, message: str, run_cli: Any, folder: Path) -> None:
    before = sorted(p.name for p in folder.rglob("*"))
    done = run_cli(*arguments, timeout=60)
    assert done.returncode == code, done.stderr
    first = done.stderr.splitlines()[0]
    assert first.startswith("error: ") and message in first
    assert len(first) <= 207 and "Traceback" not in done.stderr and done.stdout == ""
    assert sorted(p.name for p in folder.rglob("*")) == before


def test_classes_that_do_not_match(run_cli: Any, data_dir: Path) -> None:
    assert run_cli("train", "mlp", "--data", "digits", "--max-steps", 2, "--out", "run").returncode == 0
    done = run_cli("eval", "run", "--data", "cifar10", "--data-dir", data_dir)
    assert done.returncode == 2 and "no class in common" in done.stderr


def test_a_truncated_checkpoint(run_cli: Any, tmp_path: Path) -> None:
    assert run_cli("train", "mlp", "--data", "digits", "--max-steps", 2, "--out", "run").returncode == 0
    whole = (tmp_path / "run/best.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    flipped = bytearray(whole)
    flipped[len(flipped) // 3] ^= 1
    (tmp_path / "flipped.pt").write_bytes(flipped)
    for name in ("cut.pt", "flipped.pt"):
        done = run_cli("eval", name)
        assert done.returncode == 2 and name in done.stderr and "Traceback" not in done.stderr


def test_diverged_is_4_and_keeps_the_last_good_file(run_cli: Any) -> None:
    options = ["--optimizer", "sgd", "--lr", "1e30", "--schedule", "constant", "--out", "run"]
    done = run_cli("train", "mlp", "--data", "digits", *options)
    assert done.returncode == 4, done.stderr
    assert "both must be finite" in done.stderr


def test_help_is_quick_and_has_examples(run_cli: Any) -> None:
    import subprocess
    import sys

    program = "import sys; from bigmodel_cli import cli; print([m for m in ('torch', 'pydantic') if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "torch" not in loaded
    for command in (
        "train",
        "finetune",
        "eval",
        "predict",
        "export",
        "serve",
        "env-check",
        "models",
        "data",
        "recipes",
    ):
        assert "bigmodel " + command in run_cli(command, "--help").stdout
    assert run_cli("--version").stdout.startswith("bigmodel ")


def test_the_same_flags_as_ever(run_cli: Any) -> None:
    """The flag set is small, and grows on purpose only."""
    import re

    shown = set(re.findall(r"--[a-z-]+", run_cli("train", "--help").stdout.split("Options")[1]))
    expected = """--data --recipe --epochs --batch-size --lr --optimizer --schedule --loss --seed --device --precision
    --balance --max-steps --data-dir --set --out --resume --overwrite --log --import --dry-run --lr-find --json --help
    --compile --channels-last --profile --nproc --nnodes --rdzv --max-restarts --timeout --columns --group-by
    --size --task --folds --private --encoding"""
    assert shown == set(expected.split())
