"""Plots a learning-rate range test."""

from __future__ import annotations

from pathlib import Path

from bigmodel_cli.insight.plotting import drawing


def draw(rates: list[float], losses: list[float], suggested: float, path: Path) -> None:
    """Plot the smoothed loss against the learning rate, with the suggested rate marked, to `path`."""
    with drawing(path) as axes:
        axes.semilogx(rates, losses)
        axes.axvline(suggested, ls="--", color="C1", label=f"steepest descent at {suggested:.2g}")
        axes.set(xlabel="learning rate", ylabel="training loss, smoothed")
        axes.legend(frameon=False)
