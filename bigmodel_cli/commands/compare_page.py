"""The page of ``compare``: the verdict first, then figures, curves over each other, and what differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bigmodel_cli.commands.compared import Compared, cell, short, verdict
from bigmodel_cli.core.event_log import read_events

CURVES = ("train_loss", "val_loss")


def write_page(path: Path, found: Compared) -> None:
    """Write the page.

    Raises:
        MachineError: it cannot be written.
    """
    from bigmodel_cli.insight import page
    from bigmodel_cli.insight.charts import line_chart, range_of
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
    logs = {name: _epochs(s.trained.path) for name, s in zip(found.names, found.splits, strict=True)}
    keys = dict.fromkeys([f"val_{found.metric}", *CURVES, *(k for e in logs.values() for r in e for k in _curves(r))])
    drawn = [
        line_chart(
            "learning rate" if key == "lr" else key.replace("_", " "),
            [(n, _points(epochs, key)) for n, epochs in logs.items()],
            within=range_of(key),
        )
        for key in keys
    ]
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
    if any(drawn):
        parts.append(Section("Curves, by epoch", page.charts(drawn)))
    empty = page.note("The recipes are the same.")
    parts.append(Section("What differs in the recipes", page.table(("", *found.names), changed) if changed else empty))
    parts += [page.note(line) for line in found.notes]
    page.write(path, f"Comparison of {', '.join(found.names)}", parts)


TEST = (
    "Each difference is the first minus the second with its paired 95% interval. p is the chance of a difference as "
    "large between models that are equal, corrected for the number of pairs (Holm)."
)


def _epochs(checkpoint: Path) -> list[dict[str, Any]]:
    log = checkpoint.parent / "metrics.jsonl"
    return [e for e in read_events(log) if e["event"] == "epoch"] if log.is_file() else []


def _curves(event: dict[str, Any]) -> list[str]:
    return [k for k in event if k.startswith("val_")] + ["lr"]


def _points(epochs: list[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(float(e["epoch"]), float(e[key])) for e in epochs
            if isinstance(e.get(key), (int, float)) and isinstance(e.get("epoch"), int)]  # fmt: skip
