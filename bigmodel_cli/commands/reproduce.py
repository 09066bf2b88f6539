"""``bigmodel reproduce`` and ``verify-resume``: is it the same again, bit by bit, and what is not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bigmodel_cli.commands import console
from bigmodel_cli.commands import options as opt
from bigmodel_cli.core.registry import commands

if TYPE_CHECKING:
    from bigmodel_cli.engine.experiments.reproduce import Difference


@commands.register(order=130)
def reproduce(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")],
    data_dir: opt.DataDir = None,
    out: opt.Out = None,
    json: opt.Json = False,
) -> None:
    """Train a run again from what it recorded, in a new folder, and compare the weights.

    Exit 0: the same weights, to the bit. Exit 1: others, and what drifted is listed.
    Exit 2: it cannot be done, as where the data has changed.

    Example:

        bigmodel reproduce runs/resnet18-digits-1
    """
    from bigmodel_cli.commands.progress import WaitBars, for_output
    from bigmodel_cli.engine.experiments.reproduce import compare, record
    from bigmodel_cli.engine.training.run_folder import RunFolder
    from bigmodel_cli.engine.training.session import train

    then = record(run, data_dir)
    folder = RunFolder(out, f"{run.resolve().name}-again")
    with WaitBars(), for_output(json) as display:
        outcome = train(then.recipe, folder, display.emit, then.environment)
    same, drift = compare(then, outcome.folder)
    _answer(same, drift, "the same weights, to the bit", "other weights", json, {"folder": str(outcome.folder)})


@commands.register("verify-resume", order=140)
def verify_resume(
    model: opt.Model = None,
    recipe: opt.RecipeFile = None,
    steps: Annotated[int, typer.Option("--steps", min=2, help="How many steps to train.")] = 10,
    data: opt.Data = None,
    data_dir: opt.DataDir = None,
    batch_size: opt.BatchSize = None,
    device: opt.Device = None,
    assignments: opt.Set = None,
    json: opt.Json = False,
) -> None:
    """Check that a recipe of your own resumes exactly: N steps at a stretch against a stop in the middle.

    Exit 0: equal in weights, optimizer, progress and random numbers. Exit 1: not, and where.

    Example:

        bigmodel verify-resume recipes/image/digits-mlp.yaml --steps 6
    """
    import tempfile

    from bigmodel_cli.core.resolve import resolve
    from bigmodel_cli.engine.experiments.reproduce import verify_resume as verify

    flags = {"data": data, "data_dir": data_dir, "batch_size": batch_size, "device": device}
    resolved = resolve([*opt.base_layers(model, recipe), *opt.flag_layers(flags, assignments)])
    with tempfile.TemporaryDirectory(prefix="bigmodel-verify-") as folder:
        found, count = verify(resolved.recipe, steps, Path(folder), lambda event: None)
    equal = f"resume is exact: {count:,} values and tensors are equal after a stop in the middle"
    _answer(not found, found, equal, "resume is not exact", json, {"compared": count})


def _answer(same: bool, drift: list[Difference], yes: str, no: str, json: bool, more: dict[str, Any]) -> None:
    if json:
        values = [{"what": d.what, "then": d.then, "now": d.now} for d in drift]
        console.print_json({"event": "compared", "same": same, "drift": values, **more})
    else:
        if drift:
            rows = [(d.what, str(d.then), str(d.now)) for d in drift]
            console.show(console.table("what drifted", ("what", "then", "now"), rows))
        console.say(yes if same else no)
    if not same:
        raise typer.Exit(1)
