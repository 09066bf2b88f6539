"""models, data and recipes: each thing there is, once, with true figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torchvision

ROOT = Path(__file__).resolve().parents[2]


def rows(done: Any, key: str = "name") -> dict[str, dict[str, Any]]:
    assert done.returncode == 0 and done.stderr == "", done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len({r[key] for r in found}) == len(found)
    return {r[key]: r for r in found}


def test_models_with_their_parameters(run_cli: Any) -> None:
    found = rows(run_cli("models", "--json"))
    assert {"perceptron", "mlp", "cnn", "alexnet", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"} <= set(
        found
    )
    # By hand: 784 x 10 + 10; and two convolutions, two linear layers.
    assert found["perceptron"]["parameters"] == 7850
    assert found["cnn"]["parameters"] == 10 * 26 + 20 * 251 + 50 * 321 + 10 * 51
    # torchvision's has a 7x7 stem over three channels; ours over one, 3x3 where images are small.
    theirs = sum(p.numel() for p in torchvision.models.resnet50(num_classes=10).parameters())
    stems = {theirs - 64 * 49 * 3 + 64 * k for k in (9, 49)}
    assert found["resnet50"]["parameters"] in stems
    for row in found.values():
        assert row["bytes"] == 4 * row["parameters"] and row["summary"].strip()


def test_models_as_a_table(run_cli: Any) -> None:
    done = run_cli("models", "--search", "ResNet5")
    assert done.returncode == 0 and "23,5" in done.stdout
    assert [row.split()[0] for row in done.stdout.splitlines() if "fp32" not in row and "MB" in row] == [
        "resnet50",
        "resnet56",
    ]
    assert "timm:resnet50d" in done.stdout and "tv:resnet50" in done.stdout and "resnet18" not in done.stdout
    nothing = run_cli("models", "--search", "resnxt")
    assert nothing.returncode == 0 and nothing.stdout == "" and "did you mean resnet" in nothing.stderr


def test_data_and_where_it_lies(run_cli: Any, tmp_path: Path) -> None:
    found = rows(run_cli("data", "--json", "--data-dir", tmp_path))
    assert {"digits", "mnist", "fashion-mnist", "kmnist", "cifar10"} <= set(found)
    without_files = ["digits", "synthetic_images", "synthetic_interactions", "synthetic_text", "tales"]
    assert [name for name, row in found.items() if row["here"]] == without_files
    assert all(row["summary"] for row in found.values())


def test_real_data_is_found(run_cli: Any, data_dir: Path) -> None:
    found = rows(run_cli("data", "--json", "--data-dir", data_dir))
    assert found["mnist"]["here"] and not found["kmnist"]["here"]
    table = run_cli("data", "--data-dir", data_dir).stdout
    assert "70,000 handwritten digits" in table


def test_recipes_are_the_files_there_are(run_cli: Any) -> None:
    found = rows(run_cli("recipes", "--json"), "recipe")
    assert set(found) == {str(p.relative_to(ROOT)) for p in ROOT.glob("recipes/**/*.yaml")}
    for name, row in found.items():
        head = (ROOT / name).read_text().splitlines()[0].lstrip("# ")
        assert head and row["summary"].startswith(head)
    assert "recipes/image/digits-mlp.yaml" in run_cli("recipes").stdout


def test_a_row_is_a_line_in_a_pipe(run_cli: Any) -> None:
    """Without a terminal there is no width to fold rows to: grep finds whole ones."""
    import os

    environment = {k: v for k, v in os.environ.items() if k != "COLUMNS"}
    done = run_cli("data", env={**environment, "PYTHONPATH": str(ROOT)})
    row = next(line for line in done.stdout.splitlines() if "digits" in line and "yes" in line)
    assert "Alpaydin" in row and "no network" in row
