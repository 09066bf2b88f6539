"""``bigmodel reproduce`` and ``verify-resume``: is a run repeated bit by bit, and if not, what differs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bigmodel_cli.commands.arguments import options as opt
from bigmodel_cli.commands.arguments.options import RunOptions
from bigmodel_cli.commands.arguments.signatures import takes_options
from bigmodel_cli.commands.display import console
from bigmodel_cli.core.registry import commands

if TYPE_CHECKING:
    from bigmodel_cli.engine.experiments.reproduce import Difference


@commands.register(order=130)
def reproduce(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    data_dir: opt.DataDir = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder of the new run.  [default: runs/<name of RUN>-again-<n>]",
        ),
    ] = None,
    json: opt.Json = False,
) -> None:
    """Repeat a run from its own record in a new folder, and compare the weights.

    Exit code 0: the weights are bit-identical. 1: they differ, and what drifted is listed.
    2: the run cannot be repeated, for example because the data has changed.

    Example:

        bigmodel reproduce runs/resnet18-digits-1
    """
    from bigmodel_cli.commands.display.progress import WaitBars, for_output
    from bigmodel_cli.engine.experiments.reproduce import compare, record
    from bigmodel_cli.engine.session.run_folder import RunFolder
    from bigmodel_cli.engine.session.session import train

    then = record(run, data_dir)
    folder = RunFolder(out, f"{run.resolve().name}-again")
    with WaitBars(), for_output(json) as display:
        outcome = train(then.recipe, folder, display.emit, then.environment)
    same, drift = compare(then, outcome.folder)
    _show_comparison(
        same, drift, "the weights are bit-identical", "the weights differ", json, {"folder": str(outcome.folder)}
    )


@commands.register("verify-resume", order=140)
@takes_options("verify-resume")
def verify_resume(
    *,
    options: RunOptions,
    steps: Annotated[int, typer.Option("--steps", metavar="N", min=2, help="Number of steps to train.")] = 10,
    json: opt.Json = False,
) -> None:
    """Check that a recipe resumes exactly: compare an uninterrupted run with one stopped halfway.

    Exit code 0: weights, optimizer, progress and random state are equal. 1: they differ, and where is listed.

    Example:

        bigmodel verify-resume recipes/image/digits-mlp.yaml --steps 6
    """
    from bigmodel_cli.core.files.scratch import scratch_folder
    from bigmodel_cli.core.resolve import resolve
    from bigmodel_cli.engine.experiments.reproduce import verify_resume as verify

    resolved = resolve(options.recipe_layers())
    with scratch_folder() as folder:
        found, count = verify(resolved.recipe, steps, folder, lambda event: None)
    equal = f"resume is exact: {count:,} values and tensors are equal after a stop halfway"
    _show_comparison(not found, found, equal, "resume is not exact", json, {"compared": count})


def _show_comparison(same: bool, drift: list[Difference], yes: str, no: str, json: bool, more: dict[str, Any]) -> None:
    if json:
        values = [{"what": d.what, "then": d.then, "now": d.now} for d in drift]
        console.print_json({"event": "compared", "same": same, "drift": values, **more})
    else:
        if drift:
            rows = [(d.what, str(d.then), str(d.now)) for d in drift]
            console.show(console.table("differences", ("", "then", "now"), rows))
        console.say(yes if same else no)
    if not same:
        raise typer.Exit(1)
