"""Every fine-tuning method on every task and family of models: it trains a step, or it is refused in one line by name.

What is walked comes from the registries: a new method or model is walked without an edit here; a new task needs the
data it is tried on, in DATA. Of each file of models the smallest one stands for all.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import methods, models, tasks
from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.engine.checkpoint import checkpoint
from bigmodel_cli.engine.training.assemble import assemble, execute
from bigmodel_cli.engine.training.loop import train_step
from bigmodel_cli.engine.training.run import Run
from bigmodel_cli.models.layers.meta_init import init_on_meta

WORDS = ["to", "be", "or", "not", "to", "be", "that", "is", "the", "question"]


def lines(name: str, rows: list[dict[str, Any]]) -> Callable[[Path], dict[str, str]]:
    """The option that names a file of `rows`, written into a folder."""

    def write(folder: Path) -> dict[str, str]:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return {"path": str(folder / name)}

    return write


def pictures(folder: Path) -> dict[str, str]:
    """A table of images, light and dark, with two labels each."""
    rows = ["image,a,b"]
    for i in range(24):
        Image.new("L", (32, 32), 20 + 100 * (i % 2) + 50 * (i % 3 > 0)).save(folder / f"{i}.png")
        rows.append(f"{i}.png,{i % 2},{int(i % 3 > 0)}")
    (folder / "images.csv").write_text("\n".join(rows))
    return {"path": str(folder / "images.csv")}


TEXTS = [" ".join(WORDS[i % 4 : i % 4 + 3 + i % 5]) for i in range(24)]
TALK = [{"prompt": text, "completion": " a question", "rejected": " no"} for text in TEXTS]
DATA: dict[str, dict[str, tuple[dict[str, Any], Callable[[Path], dict[str, str]] | None]]] = {
    "image_classification": {
        "images": ({"name": "synthetic_images", "size": 32, "channels": 1, "classes": 3, "count": 24}, None)
    },
    "language_modeling": {
        "windows": ({"name": "synthetic_text", "vocabulary": 32, "context": 16, "tokens": 384}, None),
        "packed": ({"name": "chat_file", "context": 48, "pack": True}, lines("talk.jsonl", TALK)),
        "pairs": (
            {"name": "preference_file", "context": 32},
            lines("pairs.jsonl", [{**row, "chosen": row["completion"]} for row in TALK]),
        ),
    },
    "text_classification": {
        "texts": (
            {"name": "labelled_file", "context": 16},
            lines("texts.jsonl", [{"text": text, "label": "ab"[i % 2]} for i, text in enumerate(TEXTS)]),
        )
    },
    "rating_prediction": {
        "ratings": ({"name": "synthetic_interactions", "users": 12, "items": 9, "length": 4, "held_out": 6}, None)
    },
    "recommendation": {
        "users": ({"name": "synthetic_interactions", "users": 24, "items": 40, "length": 4, "held_out": 6}, None)
    },
    **{
        task: {
            "labelled-texts": (
                {"name": "text_targets", "task": task, "context": 16, "columns": {"label": "a+b"}},
                lines("texts.jsonl", [{"text": text, "a": i % 2, "b": int(i % 3 > 0)} for i, text in enumerate(TEXTS)]),
            ),
            "labelled-images": ({"name": "image_targets", "task": task, "columns": {"label": "a+b"}}, pictures),
        }
        for task in ("multi_label_classification", "regression")
    },
    "translation": {
        "translations": (
            {"name": "parallel_file", "context": 16},
            lines("pairs.jsonl", [{"source": text, "target": text[::-1]} for text in TEXTS]),
        )
    },
}
"""By task, the data it is tried on: the recipe's section and, for a data set of files, what writes them."""
SMALL: dict[str, dict[str, Any]] = {
    "gpt": {"layers": 1, "heads": 2, "width": 16}, "transformer": {"layers": 1, "heads": 2, "width": 16},
    "text-encoder": {"layers": 1, "width": 16}, "vit": {"width": 24, "depth": 2}, "airbench": {"width": 8},
}  # fmt: skip
"""Options that make a model smaller, for speed alone."""
VARIANTS = {"gpt": {"tied": False}}
"""A second form of a model, which a method may treat differently."""
LIBRARIES = {"timm": "timm:test_vit", "tv": "tv:squeezenet1_1"}
OPTIONS: dict[str, Callable[[str, Path], dict[str, Any]]] = {
    "freeze-until": lambda model, start: {"layer": models.get(model).meta["head"]},
    "distill": lambda model, start: {"teacher": str(start)},
}
"""The options that a method cannot do without."""


@functools.cache
def families(task: str) -> list[tuple[str, dict[str, Any]]]:
    """The smallest model of each file for `task`, by name, with its options.

    Of a task on the models of others, one of each of these tasks.
    """
    if over := tasks.get(task).meta.get("over"):
        return [next(iter(sorted(families(one), key=lambda f: f[0] not in ("resnet8", "text-cnn")))) for one in over]
    by_file: dict[str, list[str]] = {}
    for name in models.names():
        if models.get(name).meta["task"] == task:
            by_file.setdefault(models.found[name].module, []).append(name)
    spec = tasks.get(task).meta["spec_type"].typical()

    def size(name: str) -> int:
        with init_on_meta():
            return sum(p.numel() for p in models.get(name)(spec, **SMALL.get(name, {})).parameters())

    found = [(name, SMALL.get(name, {})) for name in (min(names, key=size) for names in by_file.values())]
    found += [(name, {**options, **VARIANTS[name]}) for name, options in found if name in VARIANTS]
    members = [name for family, name in LIBRARIES.items() if name in models.members(family)]
    return found + [(name, {}) for name in members if models.get(name).meta["task"] == task]


def combinations() -> Iterator[Any]:
    for task in tasks.names():
        for kind in DATA[task]:
            for model, options in families(task):
                if tasks.get(task).meta.get("over") and ("image" in models.get(model).meta["task"]) != (
                    "image" in kind
                ):
                    continue
                yield pytest.param(task, kind, model, options, id="-".join((kind, model, *map(str, options.values()))))


def layers(task: str, kind: str, model: str, options: dict[str, Any], folder: Path) -> dict[str, Any]:
    section, write = DATA[task][kind]
    return {
        "model": {"name": model, **options},
        "data": {**section, **({} if write is None else write(folder))},
        "augment": {"name": "none"},
        "train": {"epochs": 1, "batch_size": 8, "eval_batch_size": 16},
        "placement": {"device": "cpu", "precision": "fp32", "compile": False},
    }


def start_of(values: dict[str, Any], folder: Path) -> Path:
    """A checkpoint of the model as it is initialised."""
    run = assemble(resolve([Layer("walk", values)]).recipe, measure=False)
    checkpoint.save(folder / "start.pt", run.state())
    return folder / "start.pt"


def one_step(values: dict[str, Any]) -> tuple[Run, dict[str, torch.Tensor], float]:
    """The run after its first step, its tensors before it, and the loss."""
    run = assemble(resolve([Layer("walk", values)]).recipe, measure=False)
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    if run.adapted.solve is not None:
        assert execute(run)
        return run, before, run.progress.best_loss
    run.train_mode()
    run.set_lr()
    taken = train_step(run, next(run.batches.steps(0)))
    return run, before, taken.loss.item() / taken.count


def fault(task: str, model: str, method: str, values: dict[str, Any]) -> str | None:
    """What is wrong with a method on a model; None where a step was trained, or it was refused by name."""
    try:
        run, before, loss = one_step(values)
    except InputError as error:
        line = str(error)
        names = (model, task.replace("_", " "), values["data"]["name"], "the model", "data without")
        named = method in line and any(name in line for name in names)
        return None if named and "\n" not in line else f"refused without a name: {line}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    after = run.model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    if not torch.tensor(loss).isfinite():
        return f"loss {loss}"
    return (
        f"frozen, yet moved: {moved & run.frozen.tensors}" if moved & run.frozen.tensors else None if moved else "still"
    )


@pytest.mark.parametrize(("task", "kind", "model", "options"), combinations())
def test_each_method_trains_a_step_or_is_refused_by_name(
    task: str, kind: str, model: str, options: dict[str, Any], tmp_path: Path
) -> None:
    values = layers(task, kind, model, options, tmp_path)
    start = start_of(values, tmp_path)
    found = {}
    for method in methods.names():
        needed = OPTIONS[method](model, start) if method in OPTIONS else {}
        section = {"checkpoint": str(start), "method": method, **needed}
        recipe = {**values, "start": section, "optimizer": {"name": "sgd", "lr": 0.1}}
        found[method] = fault(task, model, method, recipe)
    assert not {method: what for method, what in found.items() if what is not None}
