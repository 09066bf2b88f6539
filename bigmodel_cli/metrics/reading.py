"""Formats metrics for people: in percent or as a number. Reads the registry's source and imports no torch."""

from __future__ import annotations

import math
import re
from typing import Any

from bigmodel_cli.core.registry import metrics

AFFIXES = re.compile(r"^(?:train|val|test)_|_before$")
"""Prefixes and suffixes of metric names in events: the split, and "before fine-tuning"."""


def format_metric(name: str, value: float | None) -> str:
    """`value` as shown everywhere: a fraction in percent, else with four digits; ``-`` for None.

    `name` may begin with a split (``val_accuracy``). A value of an unknown metric (of a plug-in that is not
    installed) is shown as a number.
    """
    if value is None:
        return "-"
    if isinstance(value, int):  # a count, such as the best epoch
        return str(value)
    if is_share(name):
        return f"{value:.2%}"
    return f"{value:.4f}" if 0.001 <= abs(value) < 10_000 or not value else f"{value:.4g}"


def format_interval(name: str, figure: dict[str, Any]) -> str:
    """A value with its 95% interval: ``98.10% (97.20% .. 98.90%)``, ``?`` for a value that is not finite."""
    value, low, high = ("?" if figure[k] is None else format_metric(name, figure[k]) for k in ("value", "low", "high"))
    return f"{value} ({low} .. {high})"


def is_share(name: str) -> bool:
    """Whether the metric is a fraction: shown in percent, its differences in percentage points."""
    found = metrics.found.get(AFFIXES.sub("", name))
    return found is not None and bool(found.meta.get("share"))


def bounds_of(name: str) -> tuple[float, float]:
    """The least and the greatest value that the metric can have, as it is registered: 0 and 1 for shares."""
    found = metrics.found.get(AFFIXES.sub("", name))
    meta = found.meta if found is not None else {}
    least, most = (0, 1) if meta.get("share") else (meta.get("least", -math.inf), meta.get("most", math.inf))
    return float(least), float(most)
