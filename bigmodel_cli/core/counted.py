"""Counts in sentences."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """``counted(1, "row")`` is "1 row", ``counted(2000, "row")`` "2,000 rows"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
