"""``--folds`` and ``ensemble`` in real processes."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any, cast

import numpy
import pytest
import torch
from nursery import Nursery
from PIL import Image
from scipy.stats import t

from bigmodel_cli.engine.build.load import load_trained


def ok(done: Any) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def reviews(path: Path) -> None:
    """160 reviews of 20 authors."""
    words = {"good": "fine great warm", "bad": "dull poor weak"}
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "author"])
        for i in range(160):
            label = ("good", "bad")[i % 2]
            word = words[label].split()[i % 3]
            writer.writerow([f"a {word} film number {i} by {i % 7}", label, f"author {i // 8}"])


FOLDS = ("train", "mlp", "--data", "digits", "--folds", 2, "--epochs", 4, "--precision", "fp32", "--json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the finished runs ``whole`` of cross-validation."""
    made = tmp_path_factory.mktemp("folds")
    with Nursery(made) as nursery:
        code, child = nursery.run(*FOLDS, "--out", "whole")
        assert code == 0, child.error
        (made / "summary.json").write_text(child.out.read_text().splitlines()[-1])
    return made


def test_killed_and_resumed_it_ends_with_the_same_answers(folder: Path) -> None:
    """Killed in its second run and resumed, cross-validation says what an undisturbed one says."""
    with Nursery(folder) as nursery:
        child = nursery.start(*FOLDS, "--out", "killed")
        deadline = time.monotonic() + 60
        while not (folder / "killed/fold-2/last.pt").exists():
            assert time.monotonic() < deadline and child.running(), child.error
        child.kill(signal.SIGTERM)
        assert child.wait() in (143, 0)
        first = (folder / "killed/fold-1/best.pt").read_bytes()
        code, child = nursery.run("train", "--resume", "--out", "killed", "--json")
        assert code == 0 and "fold 1 of 2: done already" in child.error, child.error
        code, child = nursery.run(*FOLDS, "--out", "killed")
        assert code == 2 and "not empty" in child.error
    assert (folder / "killed/fold-1/best.pt").read_bytes() == first
    assert (folder / "killed/out-of-fold.csv").read_text() == (folder / "whole/out-of-fold.csv").read_text()


def test_what_it_says(folder: Path) -> None:
    summary, table = json.loads((folder / "summary.json").read_text()), (folder / "whole/out-of-fold.csv").read_text()
    rows = list(csv.DictReader(table.splitlines()))
    assert sorted(int(row["row"]) for row in rows) == list(range(len(rows)))  # each sample of train once
    right = {k: [r["label"] == r["prediction"] for r in rows if r["fold"] == k] for k in ("1", "2")}
    shares = numpy.array([numpy.mean(r) for r in right.values()])
    found = summary["metrics"]["accuracy"]
    half = t.ppf(0.975, 1) * shares.std(ddof=1) * (1 / 2 + 1 / 1) ** 0.5  # Nadeau and Bengio 2003
    assert [found[k] for k in ("value", "low", "high")] == pytest.approx(
        [shares.mean(), max(0, shares.mean() - half), min(1, shares.mean() + half)]
    )
    assert summary["samples"] == sum(map(len, right.values())) < len(rows)  # val is in no fold
    shown = (folder / "whole/report.html").read_text()
    assert f"{shares.mean():.2%}" in shown and "<h2>Confusion matrix</h2>" in shown and "fold 2" in shown
    mistakes = {row["name"] for row in rows if row["fold"] in right and row["label"] != row["prediction"]}
    assert any(name in shown for name in mistakes)


def test_the_ensemble_of_folds_is_a_checkpoint_like_any_other(run_cli: Any, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "whole", tmp_path / "runs")
    whole, members = load_trained(tmp_path / "runs"), [load_trained(tmp_path / f"runs/fold-{k}") for k in (1, 2)]
    assert members[0].task.spec.mean != members[1].task.spec.mean  # each has the statistics of its own train split
    raw = {"image": torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8), "label": torch.zeros(5, dtype=torch.int64)}
    raw["index"] = torch.arange(5)
    each = [m.model(m.task.prepare(raw)["image"]).softmax(1) for m in members]
    mean = torch.stack(each).mean(0)
    assert torch.allclose(whole.model(whole.task.prepare(raw)["image"]).softmax(1), mean, atol=1e-6)

    held_out = ok(run_cli("eval", "runs/fold-1", "--split", "fold", "--json"))
    rows = list(csv.DictReader((tmp_path / "runs/out-of-fold.csv").read_text().splitlines()))
    ours = [r["label"] == r["prediction"] for r in rows if r["fold"] == "1"]
    assert held_out["samples"] == len(ours) and held_out["headline"]["accuracy"]["value"] == numpy.mean(ours)
    assert run_cli("eval", "runs", "--split", "fold").returncode == 2
    parts = run_cli("compare", "runs/fold-1", "runs/fold-2", "--split", "fold")
    assert parts.returncode == 2 and "its fold split has other samples than that of runs/fold-1" in parts.stderr
    measured = ok(run_cli("eval", "runs", "--split", "test", "--calibrate", "--json"))
    proof = ok(run_cli("export", "runs", "--format", "onnx", "--json", "--seconds", 0))
    assert proof["passed"], proof
    exported = ok(run_cli("eval", "runs/best-onnx", "--split", "test", "--json"))
    for name in ("accuracy", "ece", "loss"):
        assert exported["headline"][name]["value"] == pytest.approx(measured["headline"][name]["value"], abs=1e-4)
    Image.new("L", (8, 8), 90).save(tmp_path / "a.png")
    assert ok(run_cli("predict", "runs", "a.png", "--json"))["class"] in "0123456789"
    seen = ok(run_cli("explain", "runs", "a.png", "--method", "occlusion", "--nearest", 1, "--no-checks", "--json"))
    assert seen["file"].endswith("a.png") and len(seen["nearest"]) == 1
    further = run_cli("finetune", "--from", "runs", "--epochs", 1)
    assert further.returncode == 2 and "is an ensemble" in further.stderr


def test_members_of_other_architectures_and_what_is_refused(run_cli: Any, tmp_path: Path) -> None:
    digits = ("--data", "digits", "--epochs", 1, "--json")
    for name in ("mlp", "cnn"):
        ok(run_cli("train", name, *digits, "--out", name))
    ok(run_cli("train", "mlp", *digits, "--seed", 1, "--out", "mlp-1"))
    ok(run_cli("train", "mlp", *digits, "--loss", "mse", "--out", "scores"))
    ok(run_cli("eval", "mlp", "--calibrate", "--json"))
    notes = ok(run_cli("ensemble", "mlp", "cnn", "mlp-1", "--out", "all.pt", "--json"))["notes"]
    assert notes == ["1 of 3 members are calibrated and stay so"]
    whole, members = load_trained(tmp_path / "all.pt"), [load_trained(tmp_path / n) for n in ("mlp", "cnn", "mlp-1")]
    x = torch.randn(4, *whole.task.example(1)[0].shape[1:])
    heat = dict(members[0].task.spec.outputs)["temperature"][0]
    logits = [m.model(x) / (heat if i == 0 else 1) for i, m in enumerate(members)]
    mean = torch.stack([z.softmax(1) for z in logits]).mean(0)
    assert torch.allclose(whole.model(x).softmax(1), mean, atol=1e-6)

    ok(run_cli("ensemble", "mlp", "mlp-1", "--average", "weights", "--out", "soup.pt", "--json"))
    soup, one, two = (load_trained(tmp_path / n).model.state_dict() for n in ("soup.pt", "mlp", "mlp-1"))
    assert all(torch.allclose(soup[k], (one[k] + two[k]) / 2) for k in soup)
    for names, words in (
        (("mlp", "cnn", "--average", "weights"), "another model"),
        (("mlp", "scores"), "scores"),
        (("mlp",), "one run"),
        (("mlp", "all.pt"), "is an ensemble"),
        (("mlp", "cnn", "--out", "all.pt"), "already exists"),
    ):
        refused = run_cli("ensemble", *names, *(() if "--out" in names else ("--out", "new.pt")))
        assert refused.returncode == 2 and words in refused.stderr, refused.stderr
    for arguments, words in (
        (("--data", "tales"), "--folds for language modeling"),
        (("--data", "digits", "--nproc", 2), "one process"),
    ):
        model = "gpt-nano" if "tales" in arguments else "mlp"
        refused = run_cli("train", model, "--folds", 2, "--out", "x", *arguments)
        assert refused.returncode == 2 and words in refused.stderr, refused.stderr
        assert not (tmp_path / "x").exists()


def test_numbers_of_groups(run_cli: Any, tmp_path: Path) -> None:
    reviews(tmp_path / "reviews.csv")
    rows = list(csv.DictReader((tmp_path / "reviews.csv").open()))
    with (tmp_path / "stars.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "author"])
        stars = [4.0 + i % 3 if row["label"] == "good" else 1.0 + i % 2 for i, row in enumerate(rows)]
        writer.writerows([row["text"], star, row["author"]] for row, star in zip(rows, stars, strict=True))
    common = ("--epochs", 2, "--set", "model.width=16", "--batch-size", 16, "--json")
    task = ("--data", "stars.csv", "--task", "regression", "--group-by", "author")
    done = ok(run_cli("train", "text-cnn", *task, "--folds", 2, "--out", "runs", *common))
    assert {"r2", "mean_absolute_error"} <= set(done["metrics"])
    whole, members = load_trained(tmp_path / "runs"), [load_trained(tmp_path / f"runs/fold-{k}") for k in (1, 2)]
    raw: Any = whole.task
    batch = whole.task.prepare(raw.encode_texts(["a fine film", "a dull film"]))
    with torch.no_grad():
        answers = [cast(Any, m.task).predict(m.model, batch, 1) for m in (*members, whole)]
    for i in range(2):
        one, two, mean = (answer[i][0][1] for answer in answers)
        assert one != two and mean == pytest.approx((one + two) / 2, abs=1e-4)
    (tmp_path / "one.csv").write_text("text,label,author\na fine film,5,x\n")
    one = ok(run_cli("compare", "runs/fold-1", "runs/fold-2", "--data", "one.csv", "--json"))
    assert one["metric"] == "mean_absolute_error" and "r2 is not defined for these samples" in one["notes"]
    table = list(csv.DictReader((tmp_path / "runs/out-of-fold.csv").read_text().splitlines()))
    assert list(table[0]) == ["row", "name", "fold", "true label", "predicted label"]
    folds: dict[int, set[str]] = {}
    for row in table:
        folds.setdefault(int(row["row"]) // 8, set()).add(row["fold"])
    assert len(table) == 160 and all(len(found) == 1 for found in folds.values())  # an author is in one fold, or in val
