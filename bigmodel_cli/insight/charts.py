"""Charts as inline SVG: no script, no font, no file from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT, LEFT, RIGHT, BOTTOM, TOP = 520, 240, 64, 14, 28, 18
COLOURS = ("var(--accent)", "var(--second)", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")

Point = tuple[float, float]
Series = tuple[str, Sequence[Point]]
Range = tuple[float, float]
EVERYTHING: Range = (-math.inf, math.inf)
SHARES: Range = (0.0, 1.0)


def line_chart(caption: str, series: Sequence[Series], below: str = "", within: Range = EVERYTHING) -> str:
    """Lines by name; a single point is drawn as a dot. Empty without a finite point.

    The axis upwards ends where values can: within `within`.
    """
    kept = [(name, [p for p in line if all(map(math.isfinite, p))]) for name, line in series]
    kept = [(name, line) for name, line in kept if line]
    if not kept:
        return ""
    across, (low, high) = (padded([p[i] for _, line in kept for p in line]) for i in (0, 1))
    axes = Axes(across, (max(low, within[0]), min(high, within[1])))
    xs = [p[0] for _, line in kept for p in line]
    marks = [axes.grid(), *(axes.x_label(x, f"{x:.4g}") for x in sorted({min(xs), max(xs)}))]
    for i, (_, line) in enumerate(kept):
        colour = COLOURS[i % len(COLOURS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(axes.place, line))
        marks.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        x, y = axes.place(line[-1])
        marks.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>')
    return figure(caption, "".join(marks), below, legend([name for name, _ in kept]) if len(kept) > 1 else "")


def scatter(caption: str, points: Sequence[Point], x: str, y: str, diagonal: bool = True) -> str:
    """Points, and with `diagonal` the line on which both values are equal."""
    points = [p for p in points if all(map(math.isfinite, p))]
    if not points:
        return ""
    if diagonal:
        both = padded([v for p in points for v in p])
        axes = Axes(both, both)
    else:
        axes = Axes(padded([p[0] for p in points]), padded([p[1] for p in points]))
    marks = [axes.grid(), *(axes.x_label(v, f"{v:.3g}") for v in axes.x)]
    if diagonal:
        (x0, y0), (x1, y1) = (axes.place((v, v)) for v in axes.x)
        marks.append(f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" stroke="#888" {DASHED}/>')
    for p in points:
        px, py = axes.place(p)
        marks.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="2.5" fill="{COLOURS[0]}" fill-opacity=".55"/>')
    return figure(caption, "".join(marks), f"across: {x}; up: {y}")


def histogram(caption: str, values: Sequence[float], bins: int = 24, below: str = "") -> str:
    """How many of the values fall in each of `bins` equal parts of their range."""
    values = [v for v in values if math.isfinite(v)]
    if not values:
        return ""
    low, high = min(values), max(values)
    low, high = (low, high) if high > low else (low - 0.5, high + 0.5)
    counts = [0] * bins
    for v in values:
        counts[min(bins - 1, int((v - low) / (high - low) * bins))] += 1
    axes = Axes((low, high), (0.0, max(counts) * 1.05))
    marks = [axes.grid(), *(axes.x_label(v, f"{v:.3g}") for v in (low, high))]
    step = (high - low) / bins
    marks += [axes.bar(low + step * i, low + step * (i + 1), n, COLOURS[0]) for i, n in enumerate(counts) if n]
    return figure(caption, "".join(marks), below)


def bars(caption: str, rows: Sequence[tuple[str, float]], shown: Sequence[str], below: str = "") -> str:
    """Horizontal bars from 0, a row of HTML each, so that long names fold on a phone."""
    most = max((abs(v) for _, v in rows), default=0.0) or 1.0
    lines = "".join(
        f"<tr><td>{escape(name)}</td><td style='width:55%'>"
        f"<svg viewBox='0 0 100 8' preserveAspectRatio='none' style='height:.8rem' aria-hidden='true'>"
        f"<rect width='{100 * max(v, 0.0) / most:.1f}' height='8' fill='{COLOURS[0]}'/></svg></td>"
        f"<td class='n'>{escape(text)}</td></tr>"
        for (name, v), text in zip(rows, shown, strict=True)
    )
    small = f"<small>{escape(below)}</small>" if below else ""
    table = f"<table style='width:100%'><tbody>{lines}</tbody></table>"
    return f"<figure><figcaption>{escape(caption)}{small}</figcaption>{table}</figure>"


def reliability(caption: str, bins: Sequence[tuple[float, float, float, int]], below: str = "") -> str:
    """Bars (from, to, share correct, samples) over confidence 0..1, against the diagonal of perfect calibration."""
    axes = Axes((0.0, 1.0), (0.0, 1.0))
    marks = [axes.grid(), *(axes.x_label(v, f"{v:.0%}") for v in (0.0, 0.5, 1.0))]
    most = max((n for *_, n in bins), default=0) or 1
    for low, high, share, count in bins:
        if count:
            marks.append(axes.bar(low, high, share, COLOURS[0], 0.35 + 0.65 * (count / most) ** 0.5))
    (x0, y0), (x1, y1) = axes.place((0, 0)), axes.place((1, 1))
    marks.append(f'<line x1="{x0}" y1="{y0}" x2="{x1}" y2="{y1}" stroke="#888" {DASHED}/>')
    return figure(caption, "".join(marks), below)


DASHED = 'stroke-dasharray="4 4"'


class Axes:
    """Maps values in ranges `x` and `y` to places in the drawing."""

    def __init__(self, x: Range, y: Range) -> None:
        self.x, self.y = x, y

    def place(self, p: Point) -> Point:
        (x0, x1), (y0, y1) = self.x, self.y
        across = LEFT + (p[0] - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)
        return across, HEIGHT - BOTTOM - (p[1] - y0) / (y1 - y0) * (HEIGHT - BOTTOM - TOP)

    def grid(self) -> str:
        """Five horizontal lines with their values."""
        marks = []
        for i in range(5):
            value = self.y[0] + (self.y[1] - self.y[0]) * i / 4
            y = self.place((self.x[0], value))[1]
            marks.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#8884"/>')
            marks.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
        return "".join(marks)

    def x_label(self, value: float, text: str) -> str:
        x = self.place((value, self.y[0]))[0]
        anchor = "end" if x > WIDTH - 40 else "middle"
        return f'<text x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{escape(text)}</text>'

    def bar(self, low: float, high: float, value: float, colour: str, opacity: float = 0.8) -> str:
        (x0, y0), (x1, y1) = self.place((low, self.y[0])), self.place((high, value))
        return (
            f'<rect x="{x0 + 0.5:.1f}" y="{y1:.1f}" width="{max(x1 - x0 - 1, 0.5):.1f}" '
            f'height="{max(y0 - y1, 0):.1f}" fill="{colour}" fill-opacity="{opacity:.2f}"/>'
        )


def figure(caption: str, marks: str, below: str = "", extra: str = "") -> str:
    label, small = escape(caption), f"<small>{escape(below)}</small>" if below else ""
    drawing = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{marks}</svg>'
    return f"<figure><figcaption>{label}{small}</figcaption>{extra}{drawing}</figure>"


def legend(names: Sequence[str]) -> str:
    items = (
        f'<span style="color:{COLOURS[i % len(COLOURS)]}">&#9679;</span> {escape(name)}' for i, name in enumerate(names)
    )
    return f"<small>{' &ensp;'.join(items)}</small>"


def padded(values: Sequence[float]) -> Range:
    low, high = min(values), max(values)
    margin = (high - low) * 0.05 or abs(high) * 0.1 or 1.0
    return (max(0.0, low - margin) if low >= 0 else low - margin), high + margin
