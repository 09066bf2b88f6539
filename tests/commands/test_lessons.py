"""The course: every lesson runs at once, shows what it says, and draws its figure."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bigmodel_cli.core.registry import data, lessons
from bigmodel_cli.lessons.lesson import Result

Cli = Callable[..., Any]
ROOT = Path(__file__).resolve().parents[2]
QUICK = ("preprocess", "initialise", "load", "forward", "backward", "update", "evaluate", "perceptron", "mlp",
         "activations", "losses", "recommendation")  # fmt: skip
"""Those that take a second; `make soak` runs all."""


def run(name: str) -> Result:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return lessons.get(name)()  # type: ignore[no-any-return]


def test_every_lesson_has_its_place_formula_and_page() -> None:
    orders = [found.meta["order"] for found in lessons.found.values()]
    assert sorted(orders) == list(range(1, len(orders) + 1))
    for found in lessons.found.values():
        page, _, heading = found.meta["page"].partition("#")
        text = (ROOT / page).read_text().lower()
        words = heading.replace("-", " ").split()
        assert not heading or any(
            line.startswith("#") and all(word in line for word in words) for line in text.splitlines()
        ), found.name
        assert found.meta["formula"] and found.meta["more"].startswith("bigmodel ")


def test_lessons_show_what_they_say() -> None:
    spreads = run("initialise").values["spreads"]
    small, right, large = spreads.values()
    assert small[-1] < 1e-6 * small[0] and large[-1] > 1e3 * large[0] and 0.3 < right[-1] / right[0] < 3
    norms = run("backward").values["norms"]
    assert norms["sigmoid"][0] < 1e-2 * norms["sigmoid"][-1] and norms["relu"][0] > 0.1 * norms["relu"][-1]
    heights = run("update").values["heights"]
    assert all(found[-1] < 0.05 * found[0] for found in heights.values())
    assert run("perceptron").values["right"] | {"XOR": 0} == {"AND": 4, "OR": 4, "XOR": 0}
    assert run("perceptron").values["right"]["XOR"] < 4
    assert list(run("mlp").values["right"].values())[1:] == [4, 4]
    taste = run("recommendation").values
    assert taste["error"] < 0.5 and all((film < 4) == (person < 4) for person, film in enumerate(taste["best"]))
    told = [row[-1] for row in run("losses").rows]
    assert told[0].startswith("scores") and told[1] == "probabilities, which sum to 1.00"


def test_the_command_lists_runs_and_draws(run_cli: Cli, tmp_path: Path) -> None:
    listed = [json.loads(line)["lesson"] for line in run_cli("lesson", "--json").stdout.splitlines()]
    assert listed[0] == "preprocess" and {"gpt", "vit", "resnet"} < set(listed)
    assert "next: bigmodel lesson preprocess" in run_cli("lesson").stdout
    done = run_cli("lesson", "activations")
    assert done.returncode == 0 and "next: bigmodel lesson losses" in done.stdout, done.stderr
    assert (tmp_path / "lessons/activations.png").read_bytes().startswith(b"\x89PNG")
    found = run_cli("lesson", "Preprocess", "--json", "--out", "x")
    assert json.loads(found.stdout)["figure"] == "x/preprocess.png"
    wrong = run_cli("lesson", "preproces")
    assert wrong.returncode == 2 and "did you mean preprocess" in wrong.stderr


@pytest.mark.parametrize("name", [n for n in lessons.names() if n not in QUICK])
def test_the_longer_lessons_too(name: str) -> None:
    import figures

    if not figures.SOAK and name not in ("transformer", "retrain"):
        pytest.skip("make soak runs it")
    result = run(name)
    assert result.rows and all(len(row) == len(result.heads) for row in result.rows) and result.says
    if name == "retrain":
        assert result.values["backbone frozen"] > result.values["from scratch"] + 0.05
    if name == "transformer":
        assert result.values["right"] > 0.95 and result.values["backwards"] > 0.5


def test_the_built_in_text_is_one_text_for_ever_and_is_the_default(run_cli: Cli) -> None:
    assert data.get("tales")(Path()).fingerprint == data.get("tales")(Path("elsewhere")).fingerprint
    done = run_cli("train", "gpt-nano", "--max-steps", 2, "--out", "run", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[0])["data"] == "tales"
    for model in ("cnn", "alexnet"):
        done = run_cli("train", model, "--max-steps", 1, "--batch-size", 4, "--out", model)
        assert done.returncode == 0, done.stderr
