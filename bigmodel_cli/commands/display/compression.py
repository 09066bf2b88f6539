"""What ``bigmodel compress`` shows: the table of a search, what grew, and what int8 itself has gained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigmodel_cli.commands.display import console
from bigmodel_cli.metrics.reading import format_metric

if TYPE_CHECKING:
    from bigmodel_cli.compress.search import Frontier
    from bigmodel_cli.compress.trial import Point


def draw(found: Frontier, values: dict[str, Any], title: str, path: Path) -> None:
    from bigmodel_cli.core.errors import MachineError
    from bigmodel_cli.insight.compression_page import write_page
    from bigmodel_cli.insight.frontier import draw_frontier

    chosen = found.chosen.name if found.chosen else None
    write_page(path.with_name("report.html"), f"{title}, compressed", values["source"], values["points"], chosen)
    try:
        draw_frontier(title, values["source"], values["points"], chosen, path)
    except MachineError as error:  # the search matters more than its plot
        console.note(f"frontier.png was not drawn: {error.line}")


def show_search(found: Frontier, out: Path) -> None:
    from bigmodel_cli.compress.trial import remarks

    best = {p.name for p in found.best()}
    threads = f"{found.source.threads} thread{'s' * (found.source.threads != 1)}"
    console.show(table("Pareto frontier on val", [found.source, *found.points], best))
    console.say(f"*: on the frontier; ms: median latency of one sample, {threads}; x1, x32: speedup at batch 1 and 32")
    for line in remarks(found.source, found.points):
        console.note(line)
    for line in found.skipped:
        console.note(f"skipped: {line}")
    if found.chosen is not None:
        console.say(f"chosen: {found.chosen.name}, {found.chosen.path}")
        console.say(f"next: bigmodel eval {found.chosen.path} --split test")
    console.say(f"report: {out / 'report.html'}, plot: {out / 'frontier.png'}, data: {out / 'frontier.json'}")


def table(title: str, points: list[Point], best: set[str]) -> Any:
    """Points as a table within 80 columns; size and speed relative to the source, * for the frontier."""
    first = points[0]
    heads = ("", "MB", "smaller", "ms", "x1", "x32", first.metric, "drop")
    rows = []
    for point in points:
        faster = [f"{point.beside[b] / point.latency[b]:.1f}" for b in ("1", "32")]
        value = format_metric(point.metric, point.value)
        name = ("* " if point.name in best else "") + point.name
        smaller = f"{first.bytes / point.bytes:.1f}"
        rows.append(
            (
                name,
                f"{point.bytes / 1e6:.2f}",
                smaller,
                f"{point.latency['1']:.2f}",
                *faster,
                value,
                f"{point.drop:.2f}",
            )
        )
    return console.table(title, heads, rows, right=True)


def size(count: int) -> str:
    return f"{count / 1e6:.2f} MB"


def show_method(source: Point, points: list[Point]) -> None:
    """The source, fp32 in the runtime of the result if it has one, and the result, which is last."""
    from bigmodel_cli.compress.trial import remarks

    console.show(table("compressed", [source, *points], set()))
    for line in remarks(source, points):
        console.note(line)
    console.say(f"written: {points[-1].path}")
    console.say(f"next: bigmodel eval {points[-1].path} --split test")
