"""``eval`` with calibration, conformal sets, corruptions, foreign data and slices, in real processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from bigmodel_cli.engine.checkpoint import checkpoint


def ok(done: Any) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_a_model_is_calibrated_and_keeps_it(run_cli: Any, tmp_path: Path) -> None:
    """A network trained far beyond what its data holds is overconfident; one temperature mends most of that."""
    long = ("--epochs", 60, "--lr", 0.02, "--schedule", "constant", "--set", "data.val_fraction=0.4")
    ok(run_cli("train", "mlp", "--data", "digits", *long, "--out", "run", "--json"))
    weights = checkpoint.load(tmp_path / "run/best.pt")["model"]
    found = ok(
        run_cli("eval", "run", "--split", "test", "--calibrate", "--conformal", 0.9, "--ood", "digits", "--json")
    )
    fitted = found["calibration"]
    assert fitted["temperature"] > 1
    assert fitted["after"]["negative_log_likelihood"] < fitted["before"]["negative_log_likelihood"]
    assert found["headline"]["ece"]["value"] == fitted["after"]["ece"]["value"]
    for name, sets in found["conformal"]["scores"].items():
        assert 0.8 < sets["coverage"] < 0.97 and sets["mean_size"] < 1.5, name
    own = found["out_of_distribution"]
    assert own["samples"] == 360 and all(abs(s["auroc"] - 0.5) < 1e-6 for s in own["scores"].values())  # the same data
    assert "it has classes of the model too" in " ".join(found["notes"])

    state = checkpoint.load(tmp_path / "run/best.pt")  # kept, and the weights are what they were
    assert all(torch.equal(weights[k], state["model"][k]) for k in weights)
    assert state["meta"]["input"]["outputs"]["temperature"] == [fitted["temperature"]] * 10
    again = ok(run_cli("eval", "run", "--split", "test", "--json"))
    assert again["headline"]["ece"] == found["headline"]["ece"]
    proof = ok(run_cli("export", "run", "--format", "onnx", "--json", "--seconds", 0))
    assert proof["passed"], proof  # example.py answers with the calibrated probabilities
    exported = ok(run_cli("eval", "run/best-onnx", "--split", "test", "--json"))
    assert abs(exported["headline"]["ece"]["value"] - again["headline"]["ece"]["value"]) < 1e-3
    further = run_cli("finetune", "--from", "run", "--epochs", 1, "--out", "further")
    assert further.returncode == 0 and "outputs" not in checkpoint.load(tmp_path / "further/best.pt")["meta"]["input"]


def test_scores_are_never_told_as_probabilities(run_cli: Any, tmp_path: Path) -> None:
    from PIL import Image

    few = ("--set", "data.val_fraction=0.05")  # each is corrupted in 75 ways
    ok(run_cli("train", "mlp", "--data", "digits", *few, "--epochs", 10, "--loss", "mse", "--out", "run", "--json"))
    Image.new("L", (8, 8), 200).save(tmp_path / "a.png")
    answer = ok(run_cli("predict", "run", "a.png", "--json"))
    assert set(answer) >= {"class", "score"} and "probability" not in json.dumps(answer)
    shown = run_cli("predict", "run", "a.png")
    assert "score" in shown.stdout and "%" not in shown.stdout and "probability" not in shown.stdout
    found = ok(run_cli("eval", "run", "--corruptions", "--json"))
    assert "ece" not in found["headline"] and all("confidence" not in m and "score" in m for m in found["wrong"])
    assert "scores, not probabilities" in " ".join(found["notes"])
    damaged = found["corruptions"]
    assert len(damaged["accuracy"]) == 15 and all(len(row) == 5 for row in damaged["accuracy"].values())
    assert damaged["mean"] < damaged["clean"] == found["headline"]["accuracy"]["value"]
    proof = ok(run_cli("export", "run", "--format", "onnx", "--json", "--seconds", 0))
    assert proof["passed"], proof
    page = (tmp_path / "run/eval-val.html").read_text(encoding="utf-8")
    assert "not probabilities" in page and "Reliability" not in page
    ok(run_cli("eval", "run", "--calibrate", "--json"))  # a temperature makes probabilities of them
    assert "probability" in ok(run_cli("predict", "run", "a.png", "--json"))


def test_slices_and_what_is_refused(run_cli: Any, tmp_path: Path) -> None:
    words = {"yes": "good fine great", "no": "bad poor awful"}
    rows = [
        f"{label},{word} {i % 7},{'ab'[i % 2]}{i % 3}"
        for i in range(60)
        for label, ws in words.items()
        for word in ws.split()
    ]
    (tmp_path / "t.csv").write_text("label,text,source\n" + "\n".join(rows) + "\n")
    ok(run_cli("train", "text-cnn", "--data", "t.csv", "--epochs", 2, "--out", "run", "--json"))
    found = ok(run_cli("eval", "run", "--by", "source", "--json"))["slices"]
    assert {row["value"] for row in found["rows"]} <= {f"{a}{i}" for a in "ab" for i in range(3)}
    assert sum(row["samples"] for row in found["rows"]) == 36 or len(found["rows"]) > 1
    values = [row["accuracy"]["value"] for row in found["rows"]]
    assert values == sorted(values)  # the worst first
    for flags, said in {
        ("--by", "colour"): "colour",
        ("--corruptions",): "expected a model of images",
        ("--conformal", "1.5"): "such as 0.9",
        ("--calibrate", "--data", "digits"): "",
    }.items():
        done = run_cli("eval", "run", *flags)
        assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, (flags, done.stderr)
