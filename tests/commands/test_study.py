"""Studies: several runs by one command, the image and the table of them, and what is done is not done again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bigmodel_cli.commands.training.page import RunPage
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.types import DataBundle, ImageSpec
from bigmodel_cli.data.image.arrays import ImageArrays, select_samples
from bigmodel_cli.engine.experiments.study import outcome, read_study, recipes

ROOT = Path(__file__).resolve().parents[2]
STUDY = """
title: two and one
test: true
figure: {name: accuracies}
base:
  data: {name: digits}
  train: {epochs: 2}
runs:
  first: {model: {name: mlp}}
  tuned: {model: {name: mlp}, start: {checkpoint: "@first", method: probe}}
"""


def test_a_study_trains_draws_and_goes_on(run_cli: Any, tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text(STUDY)
    done = run_cli("study", "two.yaml", "--out", "out", "--json")
    assert done.returncode == 0, done.stderr
    results = [e for e in map(json.loads, done.stdout.splitlines()) if e["event"] == "result"]
    assert [(r["run"], r["method"]) for r in results] == [("first", "from zero"), ("tuned", "probe")]
    assert results[1]["val_accuracy"] >= results[0]["val_accuracy"] and 0 < results[1]["test_accuracy"] <= 1
    assert (tmp_path / "out/accuracies.png").stat().st_size > 5000
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.pt")}
    saved = tmp_path / "out/first/recipe.yaml"  # as a version before the field came wrote it
    saved.write_text(saved.read_text().replace("  balance: none\n", ""))
    page = tmp_path / "out/first/report.html"  # of a run that is done: its process was killed as it wrote the page
    page.write_text(page.read_text().replace("the run is done", "the run goes on"))
    name = "from bigmodel_cli.core.files.atomic_files import *; print(temporary_name(Path('report.html')))"
    ended = subprocess.run([sys.executable, "-c", name], capture_output=True, text=True, cwd=ROOT, check=True)
    draft = page.with_name(ended.stdout.strip())
    draft.write_text("half a page")
    again = run_cli("study", "two.yaml", "--out", "out")
    assert "the run is done" in page.read_text() and not draft.exists()
    assert again.returncode == 0 and "test accuracy" in again.stdout and "epoch" not in again.stderr
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.pt")} == stamps
    other = run_cli("study", "two.yaml", "--out", "out", "--epochs", 3)
    assert other.returncode == 2 and "made with train.epochs = 2, now 3" in other.stderr


def test_no_page_is_made_of_a_log_without_a_start(tmp_path: Path) -> None:
    RunPage().complete(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"event": "note", "message": "x"}\n')
    RunPage().complete(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


LOG = {
    "start": {"parameters": 7, "trainable": 7, "metric": "accuracy"},
    "epoch": {"train_loss": 0.5},
    "end": {"seconds": 1.5, "val_accuracy": 0.9},
}


@pytest.mark.parametrize(("kind", "key"), [("start", "parameters"), ("epoch", "train_loss"), ("end", "seconds")])
def test_a_log_with_words_for_numbers_is_named(kind: str, key: str, tmp_path: Path) -> None:
    recipe = next(iter(recipes(read_study(ROOT / "recipes/image/few-images.yaml"), tmp_path, []).values()))
    log = tmp_path / "metrics.jsonl"

    def write(events: dict[str, dict[str, Any]]) -> None:
        log.write_text("".join(json.dumps({"event": name, **values}) + "\n" for name, values in events.items()))

    write(LOG)
    assert outcome(tmp_path, recipe, test=False)["val_accuracy"] == 0.9  # negative control
    for wrong in ("many", None, True, 10**30):
        write({**LOG, kind: {**LOG[kind], key: wrong}})
        with pytest.raises(InputError, match=f"no number {key} in its {kind} event"):
            outcome(tmp_path, recipe, test=False)


@pytest.mark.parametrize("name", ["resnet-paper/short", "resnet-paper/full", "few-images", "few-shot"])
def test_the_studies_that_come_along_resolve(name: str) -> None:
    study = read_study(ROOT / f"recipes/image/{name}.yaml")
    found = recipes(study, Path("out"), [])
    assert list(found) == list(study.runs) and study.test and study.figure is not None


def test_what_is_no_study_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no runs in it") as caught:
        read_study(ROOT / "recipes/image/mnist-cnn.yaml")
    assert caught.value.hint is not None and caught.value.hint.startswith("bigmodel train")
    (tmp_path / "x.yaml").write_text(STUDY.replace("@first", "@frist"))
    with pytest.raises(InputError, match="run tuned: @frist; expected @ and the name of an earlier run"):
        recipes(read_study(tmp_path / "x.yaml"), tmp_path, [])
    (tmp_path / "y.yaml").write_text(STUDY.replace("title", "tilte"))
    with pytest.raises(InputError, match=r"y\.yaml: title: field required; a study has title, base, runs"):
        read_study(tmp_path / "y.yaml")
    for name in ("../victim", "/victim", "a/b", "..", ".hidden", '"a\\n"', "a\\b", "victim"):
        (tmp_path / "z.yaml").write_text(f"title: x\nruns: {{{name}: {{model: {{name: mlp}}}}}}\n")
        if name == "victim":  # control
            assert list(read_study(tmp_path / "z.yaml").runs) == [name]
            continue
        with pytest.raises(InputError, match=r"z\.yaml:2: a run named .*; expected a name like"):
            read_study(tmp_path / "z.yaml")


def test_the_papers_figure_is_drawn(tmp_path: Path) -> None:
    from bigmodel_cli.core.registry import figures

    epochs = [{"epoch": k, "train_loss": 2.0 / k} for k in (1, 2)]
    results = [
        {"run": f"{kind}{layers}", "model": f"{kind}{layers}", "epochs": epochs, "val_accuracy": 0.5}
        for kind in ("plain", "resnet")
        for layers in (8, 20)
    ]
    figures.get("depth")(results, tmp_path / "depth.png")
    from PIL import Image

    with Image.open(tmp_path / "depth.png") as image:
        assert image.width > 3 * image.height / 2


def test_a_curve_for_each_method_is_drawn(tmp_path: Path) -> None:
    from bigmodel_cli.core.registry import figures

    runs = [("full", 1, 0.3), ("norm-only", 1, 0.4), ("full", 20, 0.9), ("norm-only", 20, 0.8)]
    results = [{"run": f"{method}-{count}", "test_accuracy": value} for method, count, value in runs]
    figures.get("examples")(results, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 5000


def test_few_of_each_class() -> None:
    labels = torch.arange(60) % 3
    arrays = ImageArrays(torch.arange(60, dtype=torch.uint8).view(60, 1, 1, 1), labels, "train")
    test = ImageArrays(arrays.images, labels, "test")
    whole = DataBundle(ImageSpec(1, 1, 1, ("a", "b", "c")), {"train": lambda: arrays, "test": lambda: test})
    few = select_samples(whole, ("c", "a"), 4)
    assert few.spec.classes == ("c", "a") and set(few.load) == {"train", "val", "test"}  # type: ignore[attr-defined]
    seen = {}
    for split in ("train", "val"):
        part: Any = few.load[split]()
        assert part.labels.bincount().tolist() == [4, 4]
        assert all(int(p) % 3 == (2, 0)[int(k)] for p, k in zip(part.images.flatten(), part.labels, strict=True))
        seen[split] = set(part.images.flatten().tolist())
    assert not seen["train"] & seen["val"] and len(few.load["test"]()) == 40
    assert select_samples(whole, (), None) is whole
    for classes, count, message in [
        (("a", "d"), None, "no class 'd'"),
        (("a",), None, "two or more"),
        ((), 11, "at most 10"),
    ]:
        with pytest.raises(InputError, match=message):
            select_samples(whole, classes, count).load["train"]()
