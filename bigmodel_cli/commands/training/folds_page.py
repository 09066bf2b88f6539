"""The page of ``--folds``: the mean and its interval, each fold, curves, and figures of all out-of-fold answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigmodel_cli.metrics.reading import format_interval, format_metric

if TYPE_CHECKING:
    from bigmodel_cli.commands.evaluation.measuring import SplitOfData
    from bigmodel_cli.core.recipe import Recipe
    from bigmodel_cli.insight.cross_validation import Part
    from bigmodel_cli.insight.page import Section

PAGE = "report.html"


def write_page(recipe: Recipe, summary: dict[str, Any], measured: SplitOfData, parts: Sequence[Part]) -> None:
    """Write ``report.html`` into the folder of the `summary`. `parts` are answers, `measured` one of the folds.

    Raises:
        MachineError: it cannot be written.
    """
    from html import escape

    from bigmodel_cli.commands.comparison.page import curves, epochs_of
    from bigmodel_cli.core.strict_yaml import dump_yaml
    from bigmodel_cli.insight import page
    from bigmodel_cli.insight.page import Section

    folder, metrics = Path(summary["folder"]), summary["metrics"]
    tiles = [
        (name.replace("_", " "), format_metric(name, figure["value"]), "95%: " + _interval(name, figure))
        for name, figure in metrics.items()
    ]
    rows = [
        (str(one["fold"]), f"{one['samples']:,}", *(format_metric(name, one[name]) for name in metrics))
        for one in summary["folds"]
    ]
    heads = ("fold", "samples", *(name.replace("_", " ") for name in metrics))
    logs = {f"fold {one['fold']}": epochs_of(folder / f"fold-{one['fold']}") for one in summary["folds"]}
    drawn = curves(logs, f"val_{next(iter(metrics))}")
    body: list[str | Section] = [
        page.tiles(tiles),
        page.note(
            f"{summary['samples']:,} samples, each answered by the run that held it out."
            f" Interval: {summary['interval']}."
        ),
        *(page.note(line) for line in summary["notes"]),
        Section("Each fold by the run that held it out", page.table(heads, rows, numeric=True)),
        *([Section("Curves, by epoch", drawn)] if drawn else []),
        *_figures(measured, parts),
        Section("Recipe", f"<pre>{escape(dump_yaml(recipe.to_dict()))}</pre>"),
    ]
    page.write(folder / PAGE, f"{recipe.model.name} on {recipe.data.shown}, {len(rows)} folds", body)


def _interval(name: str, figure: dict[str, Any]) -> str:
    return format_interval(name, figure).partition("(")[2].rstrip(")")


def _figures(measured: SplitOfData, parts: Sequence[Part]) -> list[Section]:
    """The figures of the task's report on the answers of all `parts` together."""
    import torch

    from bigmodel_cli.core.registry import reports
    from bigmodel_cli.insight.evaluated import Evaluated, sections

    task, spec, train = measured.task, measured.bundle.spec, measured.bundle.load["train"]()
    outputs = {key: torch.cat([part.outputs[key] for part in parts]) for key in parts[0].outputs}
    outputs["index"] = torch.tensor([place for part in parts for place in part.places])
    report = reports.get(task.report)(task, spec, train, lambda: outputs, 0, task.metrics)
    return sections(task.report, Evaluated(task, spec, train, outputs, report.values))
