"""``bigmodel ensemble``: several runs as one checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from bigmodel_cli.commands.arguments import options as opt
from bigmodel_cli.commands.display import console
from bigmodel_cli.commands.display.pages import require_place
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import commands

Runs = Annotated[list[Path], typer.Argument(metavar="RUN...", help="Two or more runs or checkpoints.")]
Out = Annotated[Path, typer.Option("--out", metavar="FILE", help="Checkpoint to write.")]
Average = Annotated[
    Literal["answers", "weights"],
    typer.Option("--average", help="What is averaged: answers of any models, or weights of one architecture (a soup)."),
]


@commands.register(order=67)
def ensemble(
    runs: Runs,
    out: Out,
    average: Average = "answers",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file in --out.")] = False,
    json: opt.Json = False,
) -> None:
    """Combine runs into one checkpoint that answers with the mean of their probabilities or numbers.

    It is a checkpoint like any other, for eval, predict, serve, explain and export. The runs may have different
    models, but the same input and classes. It takes the time and memory of all of them; averaged weights take those
    of one, and need runs that started from the same weights.

    Examples:

        bigmodel ensemble runs/cnn-1 runs/mlp-1 --out runs/both.pt

        bigmodel ensemble runs/a runs/b --average weights --out runs/soup.pt
    """
    from bigmodel_cli.engine.experiments.ensemble import average_answers, average_weights

    if out.is_dir():
        raise InputError(f"{out}: is a folder", "expected a file for --out", f"--out {out / 'best.pt'}")
    if out.exists() and not overwrite:
        raise InputError(f"{out}: already exists", "expected a new file", "--overwrite to replace it")
    require_place(out)
    notes = (average_answers if average == "answers" else average_weights)(runs, out)
    if json:
        values = {"checkpoint": str(out), "members": [str(run) for run in runs], "average": average, "notes": notes}
        console.print_json(values)
        return
    for note in notes:
        console.note(note)
    what = f"an ensemble of {len(runs)}" if average == "answers" else f"the mean weights of {len(runs)} runs"
    console.say(f"{out}: {what}")
    console.say(f"next: bigmodel eval {out}")
