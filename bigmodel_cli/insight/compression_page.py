"""The page of a search by ``bigmodel compress``: what was chosen, size against accuracy, and every model tried."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bigmodel_cli.insight import page
from bigmodel_cli.insight.charts import bars, scatter
from bigmodel_cli.insight.page import Section
from bigmodel_cli.metrics.reading import format_metric

Point = Mapping[str, Any]


def write_page(path: Path, title: str, source: Point, points: list[Point], chosen: str | None) -> None:
    """Write the page. Each point has name, bytes, drop, speedup, frontier, metric and value.

    Raises:
        MachineError: it cannot be written.
    """
    known = [p for p in points if p["drop"] is not None]
    best = next((p for p in points if p["name"] == chosen), None)
    name = str(source["metric"])
    tiles = [("uncompressed", format_metric(name, source["value"]), f"{source['bytes'] / 1e6:.2f} MB")]
    if best is not None:
        smaller = f"{source['bytes'] / best['bytes']:.1f} times smaller, {best['speedup']:.2g}x as fast"
        tiles.insert(0, (f"chosen: {best['name']}", format_metric(name, best["value"]), smaller))
    drawn = [
        scatter("Size and loss", [(p["bytes"] / 1e6, p["drop"]) for p in known], "MB", "drop in points", False),
        bars("Speed of the frontier", [(p["name"], p["speedup"]) for p in known if p["frontier"]],
             [f"{p['speedup']:.2g}x" for p in known if p["frontier"]], "times as fast as uncompressed"),
    ]  # fmt: skip
    rows = [
        (("* " if p["frontier"] else "") + p["name"], f"{p['bytes'] / 1e6:.2f}", f"{p['speedup']:.2g}x",
         format_metric(name, p["value"]), "-" if p["drop"] is None else f"{p['drop']:.2f}")
        for p in points
    ]  # fmt: skip
    heads = ("", "MB", "speed", name.replace("_", " "), "drop in points")
    said = page.note("* on the frontier: none is both smaller and better. Chosen on the validation split.")
    page.write(
        path, title, [page.tiles(tiles), page.charts(drawn), Section("All", said + page.table(heads, rows, True))]
    )
