"""``bigmodel predict``: what a checkpoint says of files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bigmodel_cli.commands import console
from bigmodel_cli.commands import options as opt
from bigmodel_cli.core.errors import InputError


def predict(
    checkpoint: opt.Checkpoint,
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FILE...]", help="Images, texts with a sample a line, or folders of them."),
    ] = None,
    texts: Annotated[list[str] | None, typer.Option("--text", help="A text, instead of a file.")] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="How many answers a sample.")] = 3,
    device: opt.Device = None,
    precision: opt.Precision = None,
    tta: opt.Tta = False,
    json: opt.Json = False,
) -> None:
    """What a checkpoint says of each image, or of each line of a text: a class and its probability, a translation.

    Files are read ahead and answered in batches. One that cannot be read is named, and the others answered.

    Examples:

        bigmodel predict runs/resnet18-digits-1/best.pt three.png

        bigmodel predict ckpt.pt photos/ --top 1 --json

        bigmodel predict runs/text-cnn-rt-polarity-1 reviews.txt

        bigmodel predict runs/text-cnn-rt-polarity-1 --text "a fine film"
    """
    from bigmodel_cli.commands.open_model import open_trained
    from bigmodel_cli.engine.device.placement import choose_placement
    from bigmodel_cli.engine.device.process import configure_process
    from bigmodel_cli.engine.inference.predict import optimize_for_files, predict_files
    from bigmodel_cli.engine.inference.tta import with_flip_tta

    if not files and not texts:
        raise InputError("nothing to predict", "expected FILE, or --text", "bigmodel predict --help")
    trained = open_trained(checkpoint)
    if texts and not hasattr(trained.task, "asked"):
        hint = "bigmodel generate CKPT --prompt ..." if hasattr(trained.task, "prompt") else None
        what = f"{trained.path}: {trained.task.name.replace('_', ' ')}"
        raise InputError(what, "expected a classifier or a translation model for --text", hint)
    recipe = opt.recipe_of(trained, {"device": device, "precision": precision}, None)
    placement = choose_placement(recipe.placement)
    configure_process(placement)
    model = placement.model(with_flip_tta(trained.model, trained.task) if tta else trained.model)
    listed = _expand(files or [])
    quick = optimize_for_files(model, trained.task, placement, listed, recipe.placement.precision == "auto")
    if quick.note:
        console.note(quick.note)
    rows, wrong = [], []
    for name, answer in predict_files(quick.model, trained.task, quick.placement, listed, top, texts or []):
        if isinstance(answer, InputError):
            wrong.append(answer)
        elif json:
            best = [{"class": c, "probability": p} for c, p in answer]
            console.print_json({"file": name, **best[0], "top": best})
        else:
            rows.append((name, answer[0][0], f"{answer[0][1]:.2%}", _rest(answer)))
    if rows:
        console.show(console.table(None, ("sample", "answer", "probability", "next"), rows))
    if wrong:
        for error in wrong[:-1]:
            console.error(error)
        raise wrong[-1]


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
