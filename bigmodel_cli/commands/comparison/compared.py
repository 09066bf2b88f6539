"""What ``compare`` found, and how it says it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bigmodel_cli.metrics.reading import format_interval, format_metric, is_share

if TYPE_CHECKING:
    from bigmodel_cli.commands.evaluation.measuring import SplitOfData
    from bigmodel_cli.insight.comparison import Pair
    from bigmodel_cli.metrics.intervals import Figure


@dataclass(frozen=True)
class Compared:
    """What was compared: the models in the order given, what each reached, and every pair."""

    names: list[str]
    splits: list[SplitOfData]
    metric: str
    figures: list[dict[str, Figure]]
    pairs: list[Pair]
    differences: dict[str, list[Any]]
    notes: list[str]


def verdict(found: Compared, pair: Pair) -> str:
    """What a pair shows, in words."""
    a, b = found.names[pair.first], found.names[pair.second]
    values = [found.figures[i][found.metric].value for i in (pair.first, pair.second)]
    shown = [format_metric(found.metric, v) for v in values]
    gap = f"{_difference(found.metric, pair.difference)} ({_difference(found.metric, pair.low)} .. " + (
        f"{_difference(found.metric, pair.high)}), p = {pair.p_corrected:.2g}"
    )
    name = found.metric.replace("_", " ")
    if pair.better is None:
        return f"{a} and {b}: no difference is shown in {name}: {shown[0]} and {shown[1]}, {gap}"
    better, worse = (a, b) if pair.better == pair.first else (b, a)
    return f"{better} is better than {worse}: {name} of {a} {shown[0]}, of {b} {shown[1]}, {gap}"


def _difference(name: str, value: float) -> str:
    return f"{100 * value:+.2f} points" if is_share(name) else f"{value:+.4g}"


def cell(figures: dict[str, Figure], name: str) -> str:
    return format_interval(name, figures[name].to_dict()) if name in figures else "-"


def short(value: Any) -> str:
    return "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
