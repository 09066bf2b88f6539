"""Several labels and numbers per sample, from the user's table to the served export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.data.targets import Labels, Targets
from bigmodel_cli.engine.build.data import load_data
from bigmodel_cli.engine.build.load import load_trained
from bigmodel_cli.engine.training.assemble import assemble
from bigmodel_cli.tasks.answers import output_values, thresholds

WORDS = ["good", "bad", "funny", "sad", "slow", "fast", "bright", "dark"]


def sentences(count: int) -> list[list[str]]:
    draw = np.random.default_rng(0)
    return [[WORDS[i] for i in draw.integers(0, len(WORDS), 6)] for _ in range(count)]


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    """Labels are the words of a text; the price depends on two of them."""
    rows = []
    for words in sentences(200):
        labels = [word for word in ("good", "funny", "dark") if word in words]
        price = 100 + 10 * words.count("good") - 10 * words.count("bad")
        rows.append({"text": " ".join(words), "label": "|".join(labels), "price": price, "stars": len(labels)})
    file = tmp_path / "reviews.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def shades(tmp_path: Path) -> Path:
    """A table of grey images and their brightness."""
    rows = ["image;brightness"]
    for i in range(60):
        Image.new("L", (16, 20), 4 * i).save(tmp_path / f"{i}.png")
        rows.append(f"{i}.png;{4 * i}")
    file = tmp_path / "shades.csv"
    file.write_text("\n".join(rows))
    return file


def last_line(done: Any) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_labels_from_the_table_to_the_served_export(reviews: Path, run_cli: Any, tmp_path: Path) -> None:
    task = ("--task", "multi_label_classification")
    train = run_cli("train", "text-cnn", "--data", reviews, *task, "--balance", "loss", "--epochs", 8, "--out", "r")
    assert train.returncode == 0, train.stderr
    trained = load_trained(tmp_path / "r")
    assert trained.task.spec.classes == ("dark", "funny", "good")
    assert len(output_values(trained.task.spec)["thresholds"]) == 3
    assert trained.recipe.loss.name == "binary_cross_entropy"
    found = last_line(run_cli("eval", "r", "--json"))
    assert found["headline"]["mean_average_precision"]["value"] > 0.9 > 0.1 > found["headline"]["hamming_loss"]["value"]
    assert [row["threshold"] for row in found["per_label"]] == list(thresholds(trained.task.spec))
    text = "good slow good dark bad slow"
    said = last_line(run_cli("predict", "r", "--json", "--text", text))
    assert run_cli("predict", "r", "--text", text, "--out", "r.jsonl").returncode == 0
    kept = json.loads((tmp_path / "r.jsonl").read_text())
    assert set(said["labels"]) == {"good", "dark"} == set(kept["prediction"].split("|"))
    assert kept["probability funny"] < 0.5 < kept["probability good"]
    explained = last_line(run_cli("explain", "r", "--json", "--text", text, "--class", "dark"))
    assert max(zip(explained["weights"], explained["tokens"], strict=True))[1] == "dark"
    exported = run_cli("export", "r", "--format", "onnx", "--seconds", 0, "--out", "x", "--json")
    proof = last_line(exported)
    assert proof["passed"] and proof["example"]["answer"] in trained.task.spec.classes

    from bigmodel_cli.serve.model import open_model

    served = open_model(tmp_path / "x")
    tokens = trained.task.encode_texts([text])["tokens"][0].numpy()
    answer = served.to_json(served.answer([tokens])[0], 5)
    assert answer["labels"] == said["labels"]
    assert answer["top"] == [{**one, "probability": pytest.approx(one["probability"], abs=1e-4)} for one in said["top"]]


def test_numbers_from_the_table_to_the_served_export(shades: Path, run_cli: Any, tmp_path: Path) -> None:
    options = ("--task", "regression", "--columns", "label=brightness", "--epochs", 30, "--lr", "3e-3")
    train = run_cli("train", "mlp", "--data", shades, *options, "--set", "data.channels=1", "--out", "r")
    assert train.returncode == 0, train.stderr
    trained = load_trained(tmp_path / "r")
    values = output_values(trained.task.spec)
    assert trained.task.spec.classes == ("brightness",) and trained.recipe.loss.name == "mse"
    assert 80 < values["mean"][0] < 160 and 55 < values["std"][0] < 80  # of the numbers, not of what the loss sees
    found = last_line(run_cli("eval", "r", "--json"))
    assert found["headline"]["r2"]["value"] > 0.9
    error = found["headline"]["mean_absolute_error"]["value"]
    said = last_line(run_cli("predict", "r", "--json", tmp_path / "40.png"))
    assert abs(said["values"]["brightness"] - 160) < 5 * error + 5
    (tmp_path / "bright.csv").write_text("photo\n55.png\n")
    explained = last_line(
        run_cli("explain", "r", "bright.csv", "--columns", "image=photo", "--no-checks", "--json", "--out", "why")
    )
    assert explained["class"] == "brightness" and abs(explained["value"] - 220) < 5 * error + 5
    assert list((tmp_path / "why").iterdir())
    again = run_cli("finetune", "--from", "r", "--method", "probe", "--out", "p")
    assert again.returncode == 0, again.stderr
    assert output_values(load_trained(tmp_path / "p").task.spec) == values
    proof = last_line(run_cli("export", "r", "--format", "torchscript", "--seconds", 0, "--out", "x", "--json"))
    assert proof["passed"] and proof["example"]["answer"] == "brightness"
    assert float(proof["example"]["value"]) > 0
    metrics = proof["metrics"]["export"]
    assert metrics["root_mean_squared_error"]["value"] == pytest.approx(
        found["headline"]["root_mean_squared_error"]["value"], rel=1e-4
    )


def recipe(path: Path, task: str | None, columns: dict[str, str] | None = None, name: str = "text_targets") -> Any:
    data = {"name": name, "path": str(path), "task": task, **({"columns": columns} if columns else {})}
    model = "text-cnn" if name == "text_targets" else "mlp"
    return resolve([Layer("test", {"model": {"name": model}, "data": data, "train": {"max_steps": 1}})]).recipe


def test_several_numbers_are_standardised_each_by_itself(reviews: Path) -> None:
    run = assemble(recipe(reviews, "regression", {"label": "price+stars"}))
    values = output_values(run.task.spec)
    source = run.batches.source
    targets = torch.stack([source.gather(torch.tensor([i]))["label"][0] for i in range(len(source))])
    assert values["mean"] == pytest.approx(targets.double().mean(0).tolist())
    assert values["std"] == pytest.approx(targets.double().std(0, unbiased=False).tolist())
    prepared = run.task.prepare(source.gather(torch.arange(len(source))))["label"]
    assert prepared.mean(0).abs().max() < 1e-5 and (prepared.std(0, unbiased=False) - 1).abs().max() < 1e-5


def test_folders_of_links_give_several_labels(tmp_path: Path) -> None:
    for i in range(6):
        Image.new("L", (16, 16), 40 * i).save(tmp_path / f"{i}.png")
        for label in ("dark", "even", "odd"):
            if label == ("even", "odd")[i % 2] or (label == "dark" and i < 3):
                (tmp_path / "photos" / label).mkdir(parents=True, exist_ok=True)
                (tmp_path / "photos" / label / f"{i}.png").symlink_to(tmp_path / f"{i}.png")
    section = recipe(tmp_path / "photos", "multi_label_classification", name="image_targets").data
    bundle = load_data(section)
    train = bundle.load["train"]()
    assert bundle.spec.classes == ("dark", "even", "odd") and len(train) == 6
    rows = {Path(train.name(i)).stem: train.gather(torch.tensor([i]))["label"][0].tolist() for i in range(6)}
    assert rows["0"] == [1, 1, 0] and rows["1"] == [1, 0, 1] and rows["5"] == [0, 0, 1]


def test_val_is_carved_by_the_names_of_samples(shades: Path) -> None:
    """A picture that is in val stays there when others come."""

    def in_val() -> set[str]:
        run = assemble(recipe(shades, "regression", name="image_targets"))
        return {run.val.name(i) for i in range(len(run.val))}

    before = in_val()
    for i in range(60, 80):
        Image.new("L", (16, 20), i).save(shades.parent / f"{i}.png")
    shades.write_text(shades.read_text() + "".join(f"\n{i}.png;{4 * i}" for i in range(60, 80)))
    assert before and {name for name in in_val() if int(Path(name).stem) < 60} == before


@pytest.mark.parametrize(
    ("task", "cell", "message"),
    [
        ("regression", "", "price is ''; expected a number"),
        ("regression", "1,5", "price is '1,5'; expected a number, with a decimal point"),
        ("regression", "nan", "price is 'nan'; expected a number"),
        ("regression", True, "price is 'True'; expected a number"),
    ],
)
def test_a_cell_that_is_no_number_is_refused_by_line(task: str, cell: Any, message: str) -> None:
    with pytest.raises(InputError) as refused:
        Labels(task, ["price"]).add([cell], "t.csv:7")
    assert str(refused.value).startswith(f"t.csv:7: {message}")


def test_columns_of_labels_take_truth_values_and_nothing_else() -> None:
    labels = Labels("multi_label_classification", ["a", "b", "c"])
    for row in (["1", "0", "yes"], [True, False, "No"], ["1.0", "0.0", "TRUE"]):
        labels.add(row, "t.csv:2")
    assert labels.targets().tolist() == [[1, 0, 1], [1, 0, 0], [1, 0, 1]]
    with pytest.raises(InputError, match="c is 'maybe'; expected 1 or 0"):
        labels.add(["1", "0", "maybe"], "t.csv:5")


def test_what_does_not_fit_together_is_refused(reviews: Path, run_cli: Any) -> None:
    cases = [
        (["train", "text-cnn", "--data", "rt-polarity", "--task", "regression"], "data rt-polarity has no such labels"),
        (["train", "gpt-nano", "--data", reviews, "--task", "regression"], "gpt-nano is for language modeling"),
        (["train", "text-cnn", "--data", reviews, "--task", "regression", "--loss", "cross_entropy"], "expected mse"),
        (["train", "text-cnn", "--data", reviews, "--task", "regresion"], "unknown task 'regresion'; did you mean"),
    ]
    for words, message in cases:
        done = run_cli(*words)
        assert done.returncode == 2 and message in done.stderr, (words, done.stderr)


def test_targets_are_found_by_the_rows_that_labels_number() -> None:
    class Rows:
        labels = torch.tensor([2, 0])

        def __len__(self) -> int:
            return 2

        def gather(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"x": indices, "label": self.labels[indices], "index": indices}

        def name(self, index: int) -> str:
            return str(index)

    source = Targets(Rows(), torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    assert source.gather(torch.tensor([1, 0]))["label"].tolist() == [[1, 2], [5, 6]]
    assert source.label_values.tolist() == [[5, 6], [1, 2]]
