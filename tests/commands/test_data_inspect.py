"""``bigmodel data inspect``: what real folders hold, said in a table, in JSON and on a sheet."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


def texture(seed: int, size: tuple[int, int] = (120, 90)) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    for k, (split, name, count) in enumerate(
        [("train", "cat", 6), ("train", "dog", 3), ("val", "cat", 2), ("val", "dog", 2)]
    ):
        (root / split / name).mkdir(parents=True)
        for i in range(count):
            texture(100 * k + i).save(root / split / name / f"{i}.jpg", quality=90)
    return root


def test_what_is_found(photos: Path, run_cli: Any, tmp_path: Path) -> None:
    shutil.copy(photos / "train/cat/0.jpg", photos / "val/cat/leak.jpg")
    shutil.copy(photos / "train/cat/1.jpg", photos / "train/dog/both.jpg")
    shutil.copy(photos / "train/cat/2.jpg", photos / "train/cat/again.jpg")
    texture(3).save(photos / "val/cat/recompressed.jpg", quality=60)  # train/cat/3.jpg, in other bytes
    texture(7).convert("RGBA").save(photos / "train/dog/clear.png")
    (photos / "train/dog/bad.jpg").write_bytes((photos / "train/dog/0.jpg").read_bytes()[:400])
    done = run_cli("data", "inspect", photos, "--json", "--sheet", tmp_path / "sheet.png")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["counts"] == {"cat": {"train": 7, "val": 4}, "dog": {"train": 6, "val": 2}}
    assert found["leaks"] == [["train/cat/0.jpg", "val/cat/leak.jpg"]]
    assert found["two_labels"] == [["train/cat/1.jpg", "train/dog/both.jpg"]]
    assert ["train/cat/2.jpg", "train/cat/again.jpg"] in found["duplicates"]
    assert len(found["duplicates"]) == 2
    assert found["near_leaks"] == [["train/cat/3.jpg", "val/cat/recompressed.jpg"]] and not found["near_duplicates"]
    assert [bad["name"] for bad in found["undecodable"]] == ["train/dog/bad.jpg"]
    assert found["formats"] == {"JPEG": 17, "PNG": 1} and found["modes"] == {"RGB": 17, "RGBA": 1}
    assert found["shorter_side"] == {"min": 90, "median": 90, "max": 90} and found["suggested_size"] == 88
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.format == "PNG" and sheet.width > 800 and sheet.height > 200
        assert len(sheet.getcolors(1 << 20) or []) > 1000  # images are on it


def test_the_table_for_people(photos: Path, run_cli: Any) -> None:
    done = run_cli("data", "inspect", photos)
    assert done.returncode == 0, done.stderr
    for words in ("cat", "JPEG 13", "median 90", "same image in two splits", "none", "next: bigmodel train resnet18"):
        assert words in done.stdout, words


def test_a_broken_layout_is_the_same_line_as_in_training(photos: Path, run_cli: Any) -> None:
    shutil.rmtree(photos / "val" / "dog")
    done = run_cli("data", "inspect", photos)
    assert done.returncode == 2 and "val has no dog" in done.stderr


def test_plain_images_are_not_near_duplicates(tmp_path: Path, run_cli: Any) -> None:
    for i in range(6):
        folder = tmp_path / "photos" / ("a", "b")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (40 * i, 0, 0)).save(folder / f"{i}.png")
    found = json.loads(run_cli("data", "inspect", tmp_path / "photos", "--json").stdout)
    assert found["near_duplicates"] == [] and found["duplicates"] == []
