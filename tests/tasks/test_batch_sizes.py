"""A score is that of the samples, whatever the batch that evaluation puts them into."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.engine.device.placement import choose_placement
from bigmodel_cli.engine.training.assemble import assemble
from bigmodel_cli.engine.training.evaluate import evaluate, split_outputs

COUNT = 70
SMALL = {"width": 16, "layers": 1, "heads": 2}


def text(i: int) -> str:
    return " ".join(f"w{(i * 7 + k * k) % 11}" for k in range(1 + i % 9))


def write(path: Path, row: Any) -> str:
    path.write_text("".join(json.dumps(row(i)) + "\n" for i in range(COUNT)))
    return str(path)


def pictures(path: Path) -> str:
    for i in range(COUNT):
        folder = path / "xy"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 12), (3 * i, 255 - 3 * i, i)).save(folder / f"{i:03}.png")
    return str(path)


def image_table(path: Path) -> str:
    pictures(path / "f")
    rows = [f"f/{'xy'[i % 2]}/{i:03}.png,{i / 7}" for i in range(COUNT)]
    (path / "t.csv").write_text("\n".join(["image,label", *rows]))
    return str(path / "t.csv")


CASES: dict[str, tuple[str, dict[str, Any], Any, dict[str, Any]]] = {
    "images": ("resnet8", {}, pictures, {"name": "image_folder"}),
    "numbers of images": ("resnet8", {}, image_table, {"name": "image_targets", "task": "regression"}),
    "texts": (
        "text-cnn", {"width": 8}, lambda p: write(p / "a.jsonl", lambda i: {"text": text(i), "label": "ab"[i % 2]}),
        {"name": "labelled_file"},
    ),
    "texts by attention": (
        "text-encoder", SMALL, lambda p: write(p / "a.jsonl", lambda i: {"text": text(i), "label": "ab"[i % 2]}),
        {"name": "labelled_file"},
    ),
    "labels of texts": (
        "text-cnn", {"width": 8},
        lambda p: write(p / "a.jsonl", lambda i: {"text": text(i), "label": "a|b" if i % 3 else "b"}),
        {"name": "text_targets", "task": "multi_label_classification"},
    ),
    "running text": (
        "gpt", SMALL, lambda p: write(p / "a.jsonl", lambda i: {"text": text(i)}),
        {"name": "text_files", "context": 16},
    ),
    "conversations": (
        "gpt", SMALL,
        lambda p: write(p / "a.jsonl", lambda i: {"prompt": f"{i} " + text(i), "completion": text(i + 1)}),
        {"name": "chat_file", "context": 32},
    ),
    "translations": (
        "transformer", SMALL, lambda p: write(p / "a.jsonl", lambda i: {"source": text(i), "target": text(i + 3)}),
        {"name": "parallel_file", "tokenizer": "word", "context": 24},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", CASES)
def test_the_batch_changes_no_score(kind: str, tmp_path: Path) -> None:
    model, options, make, section = CASES[kind]
    section = {**section, **({"cache": "off"} if "image" in section["name"] else {})}
    values = {
        "model": {"name": model, **options},
        "data": {**section, "path": make(tmp_path), "val_fraction": 0.9},
        "train": {"max_steps": 1, "batch_size": 4},
        "placement": {"device": "cpu", "precision": "fp32"},
    }  # fmt: skip
    recipe = resolve([Layer("test", values)]).recipe
    run = assemble(recipe, measure=False)
    run.model.eval()
    placement = choose_placement(recipe.placement)
    assert len(run.val) > 16
    found = [split_outputs(run.model, run.task, run.val, placement, size) for size in (1, 7, 64)]
    metrics = [evaluate(run.model, run.task, run.val, placement, size) for size in (1, 7, 64)]
    for out, figures in zip(found[1:], metrics[1:], strict=True):
        assert out is not None and found[0] is not None and figures is not None and metrics[0] is not None
        for name, value in found[0].items():
            torch.testing.assert_close(out[name].float(), value.float(), rtol=1e-4, atol=1e-4)
        assert figures == pytest.approx(metrics[0], rel=1e-5)
