"""``bigmodel predict``: what a checkpoint says of files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bigmodel_cli.commands import console
from bigmodel_cli.commands import options as opt


def predict(
    checkpoint: opt.Checkpoint,
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Pictures, texts with a sample a line, or folders of them.")
    ],
    top: Annotated[int, typer.Option("--top", min=1, help="How many answers a sample.")] = 3,
    device: opt.Device = None,
    precision: opt.Precision = None,
    json: opt.Json = False,
) -> None:
    """What a checkpoint says of each picture, or of each line of a text: a class and its probability, a translation.

    Examples:

        bigmodel predict runs/resnet18-digits-1/best.pt three.png

        bigmodel predict ckpt.pt photos/ --top 1 --json

        bigmodel predict runs/text-cnn-rt-polarity-1 reviews.txt
    """
    import torch

    from bigmodel_cli.commands.opened import open_trained
    from bigmodel_cli.engine.placement import place

    trained = open_trained(checkpoint)
    recipe = opt.recipe_of(trained, {"device": device, "precision": precision}, None)
    placement = place(recipe.placement)
    model = placement.model(trained.model)
    rows = []
    for name, raw in (sample for file in _expand(files) for sample in trained.task.readings(file)):
        with torch.inference_mode(), placement.autocast():
            batch = placement.inputs(trained.task.prepare(placement.batch(raw)))
            answer = trained.task.answers(model, batch, top)[0]
        if json:
            best = [{"class": c, "probability": p} for c, p in answer]
            console.print_json({"file": name, **best[0], "top": best})
        else:
            rows.append((name, answer[0][0], f"{answer[0][1]:.2%}", _rest(answer)))
    if not json:
        console.show(console.table(None, ("sample", "answer", "probability", "next"), rows))


def _rest(answer: list[tuple[str, float]]) -> str:
    return ", ".join(f"{c} {p:.2%}" for c, p in answer[1:])


def _expand(paths: list[Path]) -> list[Path]:
    """Folders become the files in them, in order; hidden files are left out."""
    files: list[Path] = []
    for path in paths:
        inside = (
            sorted(f for f in path.rglob("*") if f.is_file() and not f.name.startswith(".")) if path.is_dir() else []
        )
        files += inside or [path]
    return files
