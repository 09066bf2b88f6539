"""``bigmodel study``: several runs that answer one question, as a table and a plot."""

from __future__ import annotations

import json as text
from pathlib import Path
from typing import Annotated, Any

import typer

from bigmodel_cli.commands.arguments import options as opt
from bigmodel_cli.commands.arguments.options import RunOptions
from bigmodel_cli.commands.arguments.recipe_files import find_recipe
from bigmodel_cli.commands.arguments.signatures import takes_options
from bigmodel_cli.commands.display import console
from bigmodel_cli.core.files import atomic_files
from bigmodel_cli.core.registry import commands
from bigmodel_cli.metrics.reading import format_metric

File = Annotated[Path, typer.Argument(metavar="FILE", help="Study file, such as recipes/image/few-images.yaml.")]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        help="Folder of the runs.  [default: runs/<name of FILE>]",
    ),
]


@commands.register(order=30)
@takes_options("study", epochs="the study's", max_steps="the study's", device="the study's")
def study(*, file: File, out: Out = None, options: RunOptions, json: opt.Json = False) -> None:
    """Train every run of a study and compare the results.

    Run it again to continue: finished runs are kept.

    Examples:

        bigmodel study recipes/image/resnet-paper/short.yaml

        bigmodel study recipes/image/few-images.yaml --out runs/few
    """
    from bigmodel_cli.commands.display.progress import WaitBars, for_output
    from bigmodel_cli.commands.training.page import RunPage, both
    from bigmodel_cli.engine.experiments.study import read_study, run_study

    path = find_recipe(file)
    design = read_study(path)
    folder = out or Path("runs") / (path.stem if path.parent.name == "image" else f"{path.parent.name}-{path.stem}")
    results: list[dict[str, Any]] = []
    page = RunPage()
    try:
        with WaitBars(), for_output(json) as display:
            emit = both(display.emit, page.emit)
            for name, result in run_study(design, folder, options.flag_layers(), emit):
                results.append(result)
                page.complete(folder / name)
                console.note(f"{name}: {len(results)} of {len(design.runs)} runs done")
    finally:
        page.stopped()
    atomic_files.write_text(folder / "results.json", text.dumps(results, indent=1))
    if json:
        for result in results:
            console.print_json({"event": "result", **{k: v for k, v in result.items() if k != "epochs"}})
    else:
        _show(design.title, results)
    if design.figure is not None:
        from bigmodel_cli.core.registry import figures

        figures.get(design.figure.name)(results, folder / f"{design.figure.name}.png", **design.figure.options)
        console.note(f"plot: {folder / design.figure.name}.png")


def _show(title: str, results: list[dict[str, Any]]) -> None:
    chosen_by = dict.fromkeys(r["metric"] for r in results)
    columns = [c for name in chosen_by for c in (f"val_{name}", f"test_{name}") if any(c in r for r in results)]
    rows = []
    for r in results:
        share = f"{r['trained']:,} of {r['parameters']:,}"
        figures = [format_metric(c, r.get(c)) for c in columns]
        rows.append((r["run"], share, f"{r['train_loss']:.4f}", *figures, f"{r['seconds']:.0f} s"))
    heads = ("run", "parameters trained", "train loss", *(c.replace("_", " ") for c in columns), "time")
    console.show(console.table(title, heads, rows, right=True))
