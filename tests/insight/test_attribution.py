"""Integrated gradients keep their axioms, Grad-CAM finds where, and the command shows both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import Run
from torch import nn

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import models
from bigmodel_cli.core.types import TextSpec
from bigmodel_cli.insight.attribution import grad_cam, integrated_gradients, token_attributions


def test_a_polynomial_is_explained_exactly() -> None:
    """f = x^3 y + 2 z: by hand, along the line from 0, x gets 3/4 of x^3 y, y a quarter, z all of 2 z."""
    x = torch.tensor([1.5, -2.0, 0.5], dtype=torch.float64)
    found = integrated_gradients(lambda p: p[:, 0] ** 3 * p[:, 1] + 2 * p[:, 2], x, torch.zeros_like(x), 4)
    product = 1.5**3 * -2.0
    expected = torch.tensor([0.75 * product, 0.25 * product, 1.0], dtype=torch.float64)
    torch.testing.assert_close(found.values, expected)
    assert abs(found.gap) < 1e-12 and found.baseline == 0


@pytest.mark.parametrize("name", ["text-cnn", "text-encoder", "gpt"])
def test_the_weights_of_a_text_sum_to_the_difference(name: str) -> None:
    torch.manual_seed(0)
    model = models.get(name)(TextSpec.typical(), width=32).eval()
    for parameter in model.parameters():
        parameter.data.mul_(2)  # an answer that depends on the text
    tokens = torch.randint(4, 256, (12,))

    def score(y: torch.Tensor) -> torch.Tensor:
        return (y[:, -1] if y.dim() == 3 else y).log_softmax(1)[:, 1]

    def gap(steps: int) -> float:
        return abs(token_attributions(model, model.token, tokens, score, steps).gap)

    found = token_attributions(model, model.token, tokens, score, 300)
    with torch.no_grad():
        assert found.score == pytest.approx(float(score(model(tokens[None]))), abs=1e-5)
    assert found.values.shape == (12,) and abs(found.score - found.baseline) > 0.01
    assert abs(found.gap) < 0.02 * abs(found.score - found.baseline) + 1e-4
    assert gap(1) > abs(found.gap)  # the measure can tell


def test_a_token_that_changes_nothing_gets_nothing() -> None:
    torch.manual_seed(0)
    model = models.get("text-cnn")(TextSpec.typical(), width=16, windows=(1,)).eval()
    tokens = torch.tensor([9, 0, 30, 0])  # fill in the middle
    found = token_attributions(model, model.token, tokens, lambda y: y[:, 0], 32)
    assert found.values[[1, 3]].abs().max() == 0 and found.values[[0, 2]].abs().min() > 0


def test_grad_cam_looks_where_the_class_is() -> None:
    """A class that is the brightness of the left half's maximum, another the right's."""
    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.AdaptiveMaxPool2d((1, 2)), nn.Flatten(), nn.Linear(2, 2))
    for parameter, value in zip(model.parameters(), (1 / 9, 0.0, torch.eye(2), 0.0), strict=True):
        parameter.data.copy_(torch.as_tensor(value).expand_as(parameter))
    image = torch.zeros(1, 16, 16)
    image[0, 8, 3], image[0, 8, 12] = 1.0, 1.0
    heat = grad_cam(model, image, 1)
    assert heat.shape == (16, 16) and heat.max() == 1
    with pytest.raises(InputError, match="no convolution"):
        grad_cam(nn.Sequential(nn.Flatten(), nn.Linear(256, 2)), image, 0)


def test_the_command_on_texts_and_images(run_cli: Run, tmp_path: Path) -> None:
    rows = [f"{'good fine' if i % 2 else 'bad dull'} film {i % 7},{'yes' if i % 2 else 'no'}" for i in range(80)]
    (tmp_path / "a.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    run_cli(
        "train", "text-cnn", "--data", "./a.csv", "--epochs", "8", "--batch-size", "8", "--lr", "1e-2", "--out", "run",
        "--set", "model.width=8", "--set", "model.filters=8",
    )  # fmt: skip
    done = run_cli("explain", "run", "--text", "a good film", "--steps", "200", "--json", "--out", "page.html")
    found = json.loads(done.stdout)
    weight = dict(zip(found["tokens"], found["weights"], strict=True))
    assert found["answer"] == "yes" and weight["good"] == max(weight.values()) > 0
    assert abs(sum(found["weights"]) - (found["score"] - found["baseline"])) < 0.05
    assert "good" in (tmp_path / "page.html").read_text()
    long = "a good film" + " and dull" * 40
    shown = run_cli("explain", "run", "--text", long)
    assert shown.returncode == 0 and "'good'" in shown.stdout and "difference" in shown.stdout
    assert "1 of 1 texts are longer than the model's 64 tokens, and cut there" in shown.stderr
    for arguments, words in (
        (("--text", "a", "--method", "grad-cam"), "for images"),
        (("--text", "a", "--class", "yess"), "did you mean yes"),
        ((), "nothing to explain"),
    ):
        refused = run_cli("explain", "run", *arguments)
        assert refused.returncode == 2 and words in refused.stderr, refused.stderr
    certain = run_cli("eval", "run", "--calibrate")
    assert certain.returncode == 2 and "samples of val are right; expected mistakes" in certain.stderr, certain.stderr
    from PIL import Image

    Image.new("L", (8, 8), 99).save(tmp_path / "digit.png")
    (tmp_path / "broken.png").write_bytes(b"broken")
    run_cli("train", "resnet8", "--data", "digits", "--epochs", "1", "--out", "images")
    chosen = ("--method", "integrated-gradients", "--method", "grad-cam")
    drawn = run_cli("explain", "images", "broken.png", "digit.png", *chosen, "--steps", "4", "--out", "heat", "--json")
    assert drawn.returncode == 2 and "broken.png: not an image" in drawn.stderr  # the other is explained
    said = json.loads(drawn.stdout)
    assert list(said["methods"]) == ["integrated-gradients", "grad-cam"] and said["runner_up"]["class"] != said["class"]
    assert Image.open(tmp_path / said["image"]).size == (3 * 320, 320) and (tmp_path / "heat/index.html").exists()
    why = run_cli("explain", "images", "digit.png", "--steps", "4", "--nearest", "2", "--out", "why.html")
    assert why.returncode == 0 and "left out: attention-rollout" in why.stderr, why.stderr
    page = (tmp_path / "why.html").read_text()  # the file that was named, and no folder of that name
    assert page.count("<img") == 1 + 3 + 2 and "occlusion" in page and "runner-up" in page and "deletion" in page
    asked = run_cli("explain", "images", "digit.png", "--method", "attention-rollout")
    assert asked.returncode == 2 and "no attention" in asked.stderr
