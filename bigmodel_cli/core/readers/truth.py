"""The words and numbers with which tables say yes and no."""

from __future__ import annotations

TRUTH = {
    "1": True, "1.0": True, "true": True, "yes": True, "y": True, "t": True,
    "0": False, "0.0": False, "false": False, "no": False, "n": False, "f": False, "-1": False, "-1.0": False,
}  # fmt: skip
"""In lower case. -1 is no beside 1, as in tables of attributes."""


def truth_of(text: str) -> bool | None:
    """Whether `text` says yes or no; None if it says neither."""
    return TRUTH.get(text.strip().lower())
