"""The page of ``compare``: the verdict first, then figures, curves over each other, and what differs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bigmodel_cli.commands.comparison.compared import Compared, cell, short, verdict
from bigmodel_cli.core.files.event_log import read_events

CURVES = ("train_loss", "val_loss")


def write_page(path: Path, found: Compared) -> None:
    """Write the page.

    Raises:
        MachineError: it cannot be written.
    """
    from bigmodel_cli.insight import page
    from bigmodel_cli.insight.page import Section
    from bigmodel_cli.metrics.reading import format_metric

    best = found.figures
    tiles = []
    for name, figures in zip(found.names, best, strict=True):
        figure = figures[found.metric]
        interval = f"{format_metric(found.metric, figure.low)} .. {format_metric(found.metric, figure.high)}"
        tiles.append((name, format_metric(found.metric, figure.value), interval))
    said = page.table(("",), [(verdict(found, pair),) for pair in found.pairs])
    shown = dict.fromkeys(name for figures in best for name in figures)
    rows = [(n.replace("_", " "), *(cell(figures, n) for figures in best)) for n in shown]
    logs = {name: epochs_of(s.trained.path.parent) for name, s in zip(found.names, found.splits, strict=True)}
    drawn = curves(logs, f"val_{found.metric}")
    changed = [(key, *(short(v) for v in values)) for key, values in found.differences.items()]
    split = found.splits[0]
    parts: list[str | Section] = [
        page.note(
            f"{found.metric.replace('_', ' ')} on {split.recipe.data.shown}, {split.says}, {len(split.source):,}"
            " samples"
        ),
        page.tiles(tiles),
        Section("Is the better one better?", said + page.note(TEST)),
        Section("Figures", page.table(("", *found.names), rows, numeric=True)),
    ]
    if drawn:
        parts.append(Section("Curves, by epoch", drawn))
    empty = page.note("The recipes are the same.")
    parts.append(Section("What differs in the recipes", page.table(("", *found.names), changed) if changed else empty))
    parts += [page.note(line) for line in found.notes]
    page.write(path, f"Comparison of {', '.join(found.names)}", parts)


TEST = (
    "Each difference is the first minus the second with its paired 95% interval. p is the chance of a difference as "
    "large between models that are equal, corrected for the number of pairs (Holm)."
)


def epochs_of(run: Path) -> list[dict[str, Any]]:
    """The events of the epochs in the log of the run folder; none if it has no log."""
    log = run / "metrics.jsonl"
    return [e for e in read_events(log) if e["event"] == "epoch"] if log.is_file() else []


def curves(logs: Mapping[str, list[dict[str, Any]]], first: str) -> str:
    """Charts of what several runs logged by epoch, over each other, that of the key `first` first; "" without any."""
    from bigmodel_cli.insight import page
    from bigmodel_cli.insight.charts import line_chart
    from bigmodel_cli.metrics.reading import bounds_of

    logged = [key for epochs in logs.values() for event in epochs for key in event if key.startswith("val_")]
    keys = dict.fromkeys([first, *CURVES, *logged, "lr"])
    drawn = [
        line_chart(
            "learning rate" if key == "lr" else key.replace("_", " "),
            [(name, _points(epochs, key)) for name, epochs in logs.items()],
            within=bounds_of(key),
        )
        for key in keys
    ]
    return page.charts(drawn) if any(drawn) else ""


def _points(epochs: list[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(float(e["epoch"]), float(e[key])) for e in epochs
            if isinstance(e.get(key), (int, float)) and isinstance(e.get("epoch"), int)]  # fmt: skip
