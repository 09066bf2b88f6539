"""``bigmodel study``: several runs that answer one question, in a table and an image."""

from __future__ import annotations

import json as text
from pathlib import Path
from typing import Annotated, Any

import typer

from bigmodel_cli.commands import console
from bigmodel_cli.commands import options as opt
from bigmodel_cli.core.registry import commands
from bigmodel_cli.metrics.reading import format_metric


@commands.register(order=30)
def study(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A study: recipes/image/resnet-paper/short.yaml, ...")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the runs.  [default: runs/<name of FILE>]")
    ] = None,
    epochs: opt.Epochs = None,
    max_steps: opt.MaxSteps = None,
    data_dir: opt.DataDir = None,
    device: opt.Device = None,
    assignments: opt.Set = None,
    json: opt.Json = False,
) -> None:
    """Train every run of a study and lay the results side by side. Run it again to go on: what is done stays.

    Examples:

        bigmodel study recipes/image/resnet-paper/short.yaml

        bigmodel study recipes/image/few-images.yaml --out runs/few
    """
    from bigmodel_cli.commands.progress import WaitBars, for_output
    from bigmodel_cli.engine.experiments.study import read_study, run_study

    path = opt.find_recipe(file)
    wanted = read_study(path)
    folder = out or Path("runs") / (path.stem if path.parent.name == "image" else f"{path.parent.name}-{path.stem}")
    flags = {"epochs": epochs, "max_steps": max_steps, "data_dir": data_dir, "device": device}
    layers = opt.flag_layers(flags, assignments)
    results: list[dict[str, Any]] = []
    with WaitBars(), for_output(json) as display:
        for name, result in run_study(wanted, folder, layers, display.emit):
            results.append(result)
            console.note(f"{name}: {len(results)} of {len(wanted.runs)} done")
    (folder / "results.json").write_text(text.dumps(results, indent=1), encoding="utf-8")
    if json:
        for result in results:
            console.print_json({"event": "result", **{k: v for k, v in result.items() if k != "epochs"}})
    else:
        _show(wanted.title, results)
    if wanted.figure is not None:
        from bigmodel_cli.core.registry import figures

        figures.get(wanted.figure.name)(results, folder / f"{wanted.figure.name}.png", **wanted.figure.options)
        console.note(f"drawn in {folder / wanted.figure.name}.png")


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
