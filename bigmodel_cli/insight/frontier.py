"""Plots compressed models: size against accuracy, with speed as colour."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bigmodel_cli.insight.plotting import drawing


def draw_frontier(
    title: str, source: Mapping[str, Any], points: Sequence[Mapping[str, Any]], chosen: str | None, path: Path
) -> None:
    """Plot each point (name, bytes, drop, speedup, frontier) by size and drop; the chosen one is circled.

    Raises:
        MachineError: matplotlib is not installed.
    """
    shown = [p for p in points if p["drop"] is not None]
    with drawing(path, size=(9.0, 5.0)) as axes:
        from matplotlib.ticker import LogLocator, NullLocator

        sizes, drops = [p["bytes"] / 1e6 for p in shown], [p["drop"] for p in shown]
        dots = axes.scatter(sizes, drops, c=[p["speedup"] for p in shown], cmap="viridis", s=45, zorder=3)
        axes.scatter(source["bytes"] / 1e6, 0, marker="*", s=160, color="tab:red", zorder=3)
        axes.annotate("source", (source["bytes"] / 1e6, 0), (6, 6), textcoords="offset points", fontsize=8)
        for point in _labelled(shown, chosen):
            place = (point["bytes"] / 1e6, point["drop"])
            axes.annotate(point["name"], place, (8, 8), textcoords="offset points", fontsize=7)
            if point["name"] == chosen:
                axes.scatter(*place, s=170, facecolors="none", edgecolors="tab:red", linewidths=2, zorder=4)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        # Near zero every tenth of a point counts, but a pruned network without fine-tuning drops to chance.
        axes.set_yscale("symlog", linthresh=0.5)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}")
        axes.margins(0.12)
        axes.set_ylim(max([*drops, 0.5]) * 1.4, min([*drops, 0.0]) - 0.2)  # best at the top
        axes.set_xlabel("size on disk (MB)")
        axes.set_ylabel("drop on val (points)")
        axes.set_title(title, fontsize=10)
        axes.figure.colorbar(dots, label="speedup over the source, batch size 1")


def _labelled(points: Sequence[Mapping[str, Any]], chosen: str | None) -> list[Mapping[str, Any]]:
    """The points to label: the chosen one, and the fastest of each size on the frontier, so labels do not overlap."""
    best = sorted((p for p in points if p["frontier"]), key=lambda p: (p["name"] != chosen, -p["speedup"]))
    labelled: list[Mapping[str, Any]] = []
    for point in best:
        if all(abs(math.log(point["bytes"] / other["bytes"])) > 0.3 for other in labelled):
            labelled.append(point)
    return labelled
