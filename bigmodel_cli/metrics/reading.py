"""How a person reads a metric: in percent or as a number. Asks the registry's source; imports no torch."""

from __future__ import annotations

import re
from typing import Any

from bigmodel_cli.core.registry import metrics

AROUND = re.compile(r"^(?:train|val|test)_|_before$")
"""What events put around a metric's name: the split, and whether it was measured before a fine-tuning."""


def format_metric(name: str, value: float | None) -> str:
    """`value` as it is shown everywhere: a share in percent, else four digits; ``-`` for none.

    `name` may have a split before it (``val_accuracy``). What no metric is called (a plug-in's that is not there)
    is shown as a number.
    """
    if value is None:
        return "-"
    if isinstance(value, int):  # a count, such as the best epoch
        return str(value)
    if is_share(name):
        return f"{value:.2%}"
    return f"{value:.4f}" if 0.001 <= abs(value) < 10_000 or not value else f"{value:.4g}"


def format_interval(name: str, figure: dict[str, Any]) -> str:
    """A value with its 95% interval: ``98.10% (97.20% .. 98.90%)``, ``?`` for what is not finite."""
    value, low, high = ("?" if figure[k] is None else format_metric(name, figure[k]) for k in ("value", "low", "high"))
    return f"{value} ({low} .. {high})"


def is_share(name: str) -> bool:
    """Whether the metric is a share, which is read in percent, and lost in points."""
    found = metrics.found.get(AROUND.sub("", name))
    return found is not None and bool(found.meta.get("share"))
