"""An option that was typed and has no effect on the model at hand is refused, or said to be of no use."""

from __future__ import annotations

from pathlib import Path

import pytest
from nursery import Nursery
from PIL import Image


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Nursery:
    """A folder with an image, a table, and a model of images, of texts, of numbers, and of language."""
    folder = tmp_path_factory.mktemp("unused")
    Image.new("L", (8, 8), 90).save(folder / "a.png")
    rows = [f"{'good' if i % 2 else 'bad'} film {i},{i % 2},{i % 5}.5" for i in range(40)]
    (folder / "t.csv").write_text("\n".join(["text,label,stars", *rows]))
    (folder / "n.csv").write_text("\n".join(["text,label", *(f"{r.split(',')[0]},{r.split(',')[2]}" for r in rows)]))
    (folder / "a.txt").write_text("a good film\n")
    nursery = Nursery(folder)
    small = ("--set", "model.width=16", "--set", "train.max_steps=1")
    for name, model in {
        "images": ("mlp", "--data", "digits", "--max-steps", 1),
        "texts": ("text-cnn", "--data", "t.csv", "--columns", "text=text,label=label", *small),
        "numbers": ("text-cnn", "--data", "n.csv", "--task", "regression", *small),
        "language": ("gpt-nano", "--data", "tales", "--max-steps", 1, "--batch-size", 2),
    }.items():
        code, child = nursery.run("train", *model, "--out", name, "--channels-last")
        assert code == 0, child.error
        assert ("channels_last: no effect on text" in child.error) == (name != "images"), child.error
    return nursery


REFUSED = [
    ("explain images a.png --top 3", "--top"),
    ("explain images a.png --method grad-cam --method occlusion --steps 9", "--steps"),
    ("explain texts a.txt --top 3", "--top"),
    ("explain texts a.txt --no-checks", "--checks"),
    ("explain texts a.txt --columns text=review", "--columns"),
    ("explain numbers a.txt --nearest 2 --top 1", "--top, --nearest"),
    ("predict numbers a.txt --top 2", "--top"),
    ("eval language --wrong 3", "--wrong"),
    ("eval numbers --conformal 0.9", "--conformal"),
    ("eval texts --tta", "--tta"),
    ("compress images --method int8 --epochs 2", "--epochs"),
]


@pytest.mark.parametrize(("command", "flag"), REFUSED)
def test_what_has_no_effect_is_refused(command: str, flag: str, models: Nursery) -> None:
    code, child = models.run(*command.split())
    assert code == 2 and flag in child.error, child.error


def test_what_has_an_effect_is_not(models: Nursery, tmp_path: Path) -> None:
    for command in (
        "explain images a.png --method integrated-gradients --steps 9 --no-checks",
        "explain texts a.txt --steps 9",
        "predict texts a.txt --top 2",
        "eval numbers --wrong 2",
    ):
        code, child = models.run(*command.split())
        assert code == 0, child.error
