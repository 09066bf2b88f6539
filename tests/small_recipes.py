"""Recipes of small models of every task, on data that takes a moment to make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bigmodel_cli.core.recipe import Recipe
from bigmodel_cli.core.resolve import Layer, resolve

IMAGES = {"name": "synthetic_images", "size": 32, "count": 64, "classes": 10}
TEXT = {"name": "synthetic_text", "vocabulary": 64, "context": 16, "tokens": 1024}
RATINGS = {"name": "synthetic_interactions", "users": 60, "items": 40, "length": 12}
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gpt-nano": ({}, TEXT),
    "text-cnn": ({"width": 8, "filters": 4}, {"name": "labelled_file"}),
    "text-encoder": ({"width": 16, "layers": 1, "heads": 2}, {"name": "labelled_file"}),
    "several": (
        {"name": "text-cnn", "width": 8, "filters": 4},
        {"name": "text_targets", "task": "multi_label_classification"},
    ),
    "numbers": ({"name": "text-cnn", "width": 8, "filters": 4}, {"name": "text_targets", "task": "regression"}),
    "chat": ({"name": "gpt-nano"}, {"name": "chat_file", "pack": True}),
    "transformer": ({"width": 16, "layers": 1, "heads": 2}, {"name": "parallel_file"}),
    **{name: ({}, RATINGS) for name in ("mf", "ncf", "dcn-v2", "sasrec", "two-tower")},
}
"""The options and the data of a model; the others take images."""
KINDS = {"chat_file": "jsonl", "parallel_file": "tsv"}
LOSSES = {"several": "binary_cross_entropy", "numbers": "mse"}


def written(folder: Path, name: str) -> dict[str, str]:
    """The path of a file for the data set `name`, which is written to `folder`; nothing for data that is made up."""
    rows: dict[str, str] = {
        "labelled_file": "text,label\n" + "".join(f"w{i % 7} w{i % 5} x,{'ab'[i % 2]}\n" for i in range(80)),
        "text_targets": "text,label\n" + "".join(f"w{i % 7} w{i % 5} x,{i % 2}\n" for i in range(80)),
        "chat_file": "".join(f'{{"prompt": "p{i}", "completion": "c{i % 9}"}}\n' for i in range(80)),
        "parallel_file": "source\ttarget\n"
        + "".join(f"a w{i % 7} w{i % 5}\tein v{i % 7} v{i % 5}\n" for i in range(80)),
    }
    if name not in rows:
        return {}
    path = folder / f"{name}.{'jsonl' if name == 'chat_file' else 'tsv' if name == 'pairs_file' else 'csv'}"
    path.write_text(rows[name])
    return {"path": str(path)}


def small_recipe(folder: Path, model: str, /, **sections: dict[str, Any]) -> Recipe:
    """The recipe of `model` with batches of 8; its data is written to `folder`."""
    options, data = MODELS.get(model, ({}, IMAGES))
    values: dict[str, Any] = {
        "model": {"name": model, **options, **sections.pop("model", {})},
        "data": {**data, **written(folder, data["name"])},
        **({"loss": {"name": LOSSES[model]}} if model in LOSSES else {}),
        **sections,
        "train": {"batch_size": 8, **sections.get("train", {})},
    }
    return resolve([Layer("test", values)]).recipe
