"""Writes a self-contained HTML report of a run: curves as inline SVG, results and recipe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from bigmodel_cli.core import atomic_files
from bigmodel_cli.metrics.reading import format_metric

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 520, 240, 64, 28, 12
COLOURS = ("#2563eb", "#dc2626")
STYLE = """
:root { color-scheme: light dark; --line: #8884; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1120px; margin: 2rem auto; padding: 0 1rem; }
figure { display: inline-block; margin: 0 .5rem 1rem 0; } figcaption { font-weight: 600; }
svg { max-width: 100%; } text { fill: currentColor; font-size: 11px; }
table { border-collapse: collapse; } td { padding: .15rem 1rem .15rem 0; border-bottom: 1px solid var(--line); }
pre { border: 1px solid var(--line); padding: 1rem; overflow-x: auto; }
"""

Series = tuple[str, list[tuple[float, float]]]


def write_report(
    path: Path, *, title: str, recipe_text: str, events: list[dict[str, Any]], final: dict[str, Any]
) -> None:
    """Write the page atomically; all external text is escaped."""
    epochs = [e for e in events if e.get("event") == "epoch"]
    names = [k for e in epochs for k in e if k.startswith("val_") and k != "val_loss"]
    charts = [_chart("loss", [_series(epochs, "train_loss"), _series(epochs, "val_loss")])]
    charts += [_chart(name.replace("_", " "), [_series(epochs, name)]) for name in dict.fromkeys(names)]
    charts.append(_chart("learning rate", [_series(epochs, "lr")]))
    rows = "".join(
        f"<tr><td>{escape(k.replace('_', ' '))}</td><td>{escape(_shown(k, v))}</td></tr>"
        for k, v in final.items()
        if k != "event"
    )
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{STYLE}</style><h1>{escape(title)}</h1>"
        f"<table>{rows}</table><h2>Curves, by epoch</h2>{''.join(charts)}"
        f"<h2>Recipe</h2><pre>{escape(recipe_text)}</pre></html>\n"
    )
    atomic_files.write_text(path, page)


def _shown(name: str, value: Any) -> str:
    return format_metric(name, value) if isinstance(value, float) else str(value)


def _series(epochs: list[dict[str, Any]], key: str) -> Series:
    """The finite values of `key` by epoch, since NaN cannot be plotted."""
    values = [(e.get("epoch"), e.get(key)) for e in epochs]
    line = [(float(x), float(y)) for x, y in values if isinstance(x, (int, float)) and isinstance(y, (int, float))]
    return key.replace("_", " "), [p for p in line if all(map(math.isfinite, p))]


def _chart(caption: str, series: Sequence[Series]) -> str:
    """A line chart; a single point is drawn as a dot."""
    points = [p for _, line in series for p in line]
    if not points:
        return ""
    (x0, x1), (y0, y1) = (_range([p[i] for p in points]) for i in (0, 1))

    def place(p: tuple[float, float]) -> tuple[float, float]:
        x = LEFT + (p[0] - x0) / (x1 - x0) * (WIDTH - LEFT - 12)
        return x, HEIGHT - BOTTOM - (p[1] - y0) / (y1 - y0) * (HEIGHT - BOTTOM - TOP)

    marks = []
    for i in range(5):
        value = y0 + (y1 - y0) * i / 4
        y = place((x0, value))[1]
        marks.append(f'<line x1="{LEFT}" x2="{WIDTH - 12}" y1="{y:.1f}" y2="{y:.1f}" stroke="#8884"/>')
        marks.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    for value in (min(p[0] for p in points), max(p[0] for p in points)):
        marks.append(f'<text x="{place((value, y0))[0]:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{value:g}</text>')
    for i, (name, line) in enumerate((n, x) for n, x in series if x):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(place, line))
        marks.append(f'<polyline points="{path}" fill="none" stroke="{COLOURS[i]}" stroke-width="2"/>')
        x, y = place(line[-1])
        marks.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{COLOURS[i]}"/>')
        marks.append(f'<text x="{LEFT + 8 + 110 * i}" y="{TOP}" style="fill:{COLOURS[i]}">{escape(name)}</text>')
    label = escape(caption)
    drawing = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" aria-label="{label}">{"".join(marks)}</svg>'
    )
    return f"<figure><figcaption>{label}</figcaption>{drawing}</figure>"


def _range(values: list[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = (high - low) * 0.05 or abs(high) * 0.1 or 1.0
    return low - margin, high + margin
