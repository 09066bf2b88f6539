"""import bigmodel: the same runs as the commands give, as plain objects; and the notebook of the docs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import environment

import bigmodel
from bigmodel_cli.engine.checkpoint import checkpoint

ROOT = Path(__file__).resolve().parents[2]
PLAIN = {"placement.precision": "fp32", "placement.threads": 1}
AS_A_NOTEBOOK_DOES = """
import ast, json, sys
space = {}
for cell in json.load(sys.stdin):
    *body, last = ast.parse(cell).body
    body, shown = (body, last) if isinstance(last, ast.Expr) else ([*body, last], None)
    exec(compile(ast.Module(body, []), "cell", "exec"), space)
    if shown:
        print(repr(eval(compile(ast.Expression(shown.value), "cell", "eval"), space)))
"""


def test_importing_it_loads_no_torch() -> None:
    heavy = {"torch", "pydantic", "rich", "typer"}
    program = f"import sys, bigmodel; assert not {heavy} & set(sys.modules); print(bigmodel.Recipe)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and "Recipe" in done.stdout, done.stderr


def test_a_run_is_the_commands_run(
    run_cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = bigmodel.train("perceptron", "digits", max_steps=5, lr=0.01, out="ours", progress=False, settings=PLAIN)
    sets = [word for key, value in PLAIN.items() for word in ("--set", f"{key}={value}")]
    done = run_cli("train", "perceptron", "--data", "digits", "--max-steps", 5, "--lr", 0.01, "--out", "theirs", *sets)
    assert done.returncode == 0, done.stderr
    import torch

    ours, theirs = (checkpoint.load(tmp_path / name / "best.pt")["model"] for name in ("ours", "theirs"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert run.steps == 5 and run.checkpoint.is_file() and run.recipe.train.max_steps == 5
    assert (tmp_path / "ours/report.html").is_file()
    measured = bigmodel.evaluate(run.folder)
    shown = json.loads(run_cli("eval", "ours", "--json").stdout)
    assert measured["metrics"] == shown["headline"] and measured["split"] == "val"
    with pytest.raises(bigmodel.InputError, match="no such argument 'epoch'; did you mean epochs"):
        bigmodel.train("perceptron", epoch=3)
    with pytest.raises(bigmodel.InputError, match="the folder is not empty"):
        bigmodel.train("perceptron", out="ours")


def test_the_notebook(tmp_path: Path) -> None:
    book = json.loads((ROOT / "docs/python.ipynb").read_text())
    code = ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]
    done = subprocess.run([sys.executable, "-c", AS_A_NOTEBOOK_DOES], input=json.dumps(code), capture_output=True,
                          text=True, cwd=tmp_path, env={**environment(), "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "val_accuracy" in done.stdout and "Prediction(sample='grey.png'" in done.stdout
    assert "unknown model 'resnet81'" in done.stdout and (tmp_path / "shipped/model.safetensors").is_file()
