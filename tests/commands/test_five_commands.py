"""The suite from end to end, in real processes: train, finetune, eval, predict, export."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bigmodel_cli.core.files.owners import current_owner
from bigmodel_cli.engine.checkpoint import checkpoint


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def ok(done: Any) -> Any:
    assert done.returncode == 0, done.stderr
    return done


def test_from_zero_to_a_proven_export(run_cli: Any, tmp_path: Path) -> None:
    events = lines(ok(run_cli("train", "mlp", "--data", "digits", "--epochs", 12, "--out", "run", "--json")).stdout)
    assert [e["event"] for e in events].count("epoch") == 12
    assert events[-1]["event"] == "end" and events[-1]["val_accuracy"] > 0.85
    assert {"recipe.yaml", "metrics.jsonl", "status.json", "last.pt", "best.pt", "report.html"} <= {
        p.name for p in (tmp_path / "run").iterdir()
    }
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "done"
    # Anyone can read it without bigmodel.
    assert "head.weight" in torch.load(tmp_path / "run/best.pt", weights_only=True)["model"]

    report = lines(ok(run_cli("eval", "run", "--split", "test", "--json")).stdout)[0]
    accuracy = report["headline"]["accuracy"]
    assert 0.85 < accuracy["low"] <= accuracy["value"] <= accuracy["high"] <= 1
    assert sum(map(sum, report["confusion"])) == report["samples"] == 360
    assert report["wrong"][0]["name"].startswith("test[")

    from PIL import Image

    from bigmodel_cli.data.image.digits import digits

    source = digits(tmp_path).load["test"]()
    image = source.gather(torch.tensor([5]))
    Image.fromarray(image["image"][0, 0].numpy()).resize((64, 64)).save(tmp_path / "digit.png")
    answer = lines(ok(run_cli("predict", "run", "digit.png", "--json")).stdout)[0]
    assert answer["class"] == str(int(image["label"]))
    assert sum(t["probability"] for t in answer["top"]) <= 1 + 1e-6
    assert "next: bigmodel explain run/best.pt digit.png" in ok(run_cli("predict", "run", "digit.png")).stderr

    proof = lines(ok(run_cli("export", "run", "--format", "onnx", "--json", "--seconds", 0)).stdout)[0]
    assert proof["passed"] and proof["largest_difference"] <= 1e-4 and proof["equal_answers"] == 1
    folder = tmp_path / "run/best-onnx"
    assert json.loads((folder / "labels.json").read_text()) == [str(k) for k in range(10)]
    assert json.loads((folder / "preprocess.json").read_text())["mode"] == "L"
    assert proof["example"]["answer"] in list("0123456789")
    made = {path: path.read_bytes() for path in folder.iterdir()}
    again = run_cli("export", "run", "--format", "onnx")
    assert again.returncode == 2 and "--overwrite" in again.stderr
    assert {path: path.read_bytes() for path in folder.iterdir()} == made


def test_a_frozen_backbone_is_frozen(run_cli: Any, tmp_path: Path) -> None:
    ok(run_cli("train", "resnet8", "--data", "digits", "--max-steps", 2, "--out", "base"))
    done = ok(run_cli("finetune", "--from", "base/last.pt", "--freeze-backbone", "--max-steps", 3, "--out", "tuned"))
    assert "head kept: the 10 classes match by name" in done.stderr
    assert "byte-identical" in done.stdout and "buffers frozen" in done.stdout.replace("\n", " ")
    before = checkpoint.load(tmp_path / "base/last.pt")["model"]
    after = checkpoint.load(tmp_path / "tuned/last.pt")["model"]
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed == {"fc.weight", "fc.bias"}
    # The other way round: without freezing everything moves, BatchNorm statistics too.
    ok(run_cli("finetune", "--from", "base/last.pt", "--max-steps", 2, "--out", "whole"))
    whole = checkpoint.load(tmp_path / "whole/last.pt")["model"]
    assert not torch.equal(before["bn1.running_mean"], whole["bn1.running_mean"])


def test_dry_run_trains_nothing(run_cli: Any, tmp_path: Path) -> None:
    gone = dataclasses.replace(current_owner(), started=1)
    (tmp_path / f".preflight.{gone.token}.new").mkdir()  # of one that was killed
    found = lines(ok(run_cli("train", "mlp", "--data", "digits", "--lr", "3e-4", "--dry-run", "--json")).stdout)[0]
    assert found["origin"]["optimizer.lr"] == "--lr" and found["recipe"]["optimizer"]["lr"] == 3e-4
    assert found["parameters"] == 64 * 128 + 128 + 128 * 10 + 10
    assert found["flops"] == 2 * (64 * 128 + 128 * 10)
    assert found["checkpoint_bytes"] > 4 * found["parameters"]
    assert list(tmp_path.iterdir()) == []


def test_mnist_by_the_book(run_cli: Any, tmp_path: Path, data_dir: Path) -> None:
    """Real MNIST through every command, each exit code checked."""
    ok(
        run_cli(
            "train", "cnn", "--data", "mnist", "--data-dir", data_dir, "--max-steps", 150, "--lr", 3e-3, "--out", "run",
            "--set", "data.val_fraction=0.02",
        )
    )  # fmt: skip
    report = lines(ok(run_cli("eval", "run", "--split", "test", "--json")).stdout)[0]
    assert report["samples"] == 10_000 and report["headline"]["accuracy"]["value"] > 0.95
    ok(run_cli("finetune", "--from", "run", "--freeze-backbone", "--max-steps", 20, "--out", "tuned"))
    from PIL import Image

    from bigmodel_cli.data.image.mnist import mnist

    digit = mnist(data_dir).load["test"]().gather(torch.tensor([0]))  # a clear seven
    Image.fromarray(digit["image"][0, 0].numpy()).save(tmp_path / "seven.png")
    assert lines(ok(run_cli("predict", "run", "seven.png", "--json")).stdout)[0]["class"] == str(int(digit["label"]))
    ok(run_cli("export", "run", "--format", "onnx", "--seconds", 0))


@pytest.mark.parametrize("name", ["digits-mlp", "mnist-cnn", "digits-resnet18", "mnist-resnet18"])
def test_every_recipe_trains_two_steps(name: str, run_cli: Any, data_dir: Path) -> None:
    recipe = f"recipes/image/{name}.yaml"
    ok(run_cli("train", recipe, "--data-dir", data_dir, "--max-steps", 2, "--set", "data.val_fraction=0.005"))
    ok(run_cli("recipe", "show", recipe))


def test_the_classic_exercise_repeats_to_the_digit(run_cli: Any) -> None:
    ends = []
    for out in ("a", "b"):
        run = ok(run_cli("train", "recipes/image/digits-mlp.yaml", "--out", out, "--json"))
        ends.append(lines(run.stdout)[-1])
    assert ends[0]["digest"] == ends[1]["digest"]
    assert ends[0]["val_accuracy"] == ends[1]["val_accuracy"] > 0.6
