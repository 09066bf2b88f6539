"""``--log wandb`` and ``--log trackio``, which have one interface: curves, the recipe, pictures and texts."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

from bigmodel_cli.core.registry import loggers
from bigmodel_cli.insight.loggers.recipe_values import curves, kept_id, recipe_values

Event = Mapping[str, Any]


@loggers.register(files=("wandb.id", "wandb"), needs=("wandb",), extra="wandb", samples=True)
@contextmanager
def wandb(folder: Path, history: Sequence[Event]) -> Iterator[Callable[[Event], None]]:
    """Weights & Biases: project WANDB_PROJECT, or bigmodel; WANDB_MODE=offline writes to the run folder."""
    name = kept_id(folder / "wandb.id")
    with _tracked("wandb", history, folder, "WANDB_PROJECT", id=name, name=folder.name, dir=str(folder)) as write:
        yield write


@loggers.register(files=("trackio.id",), needs=("trackio",), extra="trackio", samples=True)
@contextmanager
def trackio(folder: Path, history: Sequence[Event]) -> Iterator[Callable[[Event], None]]:
    """Trackio, which keeps runs on this machine: project TRACKIO_PROJECT, or bigmodel; `trackio show` draws them."""
    name = f"{folder.name}-{kept_id(folder / 'trackio.id')}"
    with _tracked("trackio", history, folder, "TRACKIO_PROJECT", name=name, embed=False) as write:
        yield write


@contextmanager
def _tracked(
    module: str, history: Sequence[Event], folder: Path, project: str, **options: Any
) -> Iterator[Callable[[Event], None]]:
    tracker = importlib.import_module(module)
    # Epoch 0 is the start of a run that solves for its head first.
    done = max((event["epoch"] for event in history if event["event"] == "epoch"), default=-1)
    tracker.init(
        project=os.environ.get(project, "bigmodel"), config=recipe_values(folder), resume="allow", **options
    )  # fmt: skip

    def write(event: Event) -> None:
        if event["event"] == "epoch" and event["epoch"] > done:
            tracker.log(curves(event), step=event["epoch"])
        elif event["event"] == "samples" and event["epoch"] > done:
            shown = {name: tracker.Image(pixels) for name, pixels in event["figures"].items()}
            for i, (title, pixels) in enumerate(event["images"], 1):
                shown[f"sample {i}"] = tracker.Image(pixels, caption=title)
            for i, (title, text) in enumerate(event["texts"], 1):
                shown[f"text {i}"] = tracker.Html(f"<p><b>{escape(title)}</b></p><pre>{escape(text)}</pre>")
            tracker.log(shown, step=event["epoch"])

    try:
        yield write
    finally:
        tracker.finish()
