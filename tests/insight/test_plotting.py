"""Plots show names as they are."""

from __future__ import annotations

from pathlib import Path

import pytest


def test_a_name_starts_no_formula(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    from bigmodel_cli.insight.plotting import drawing

    with drawing(tmp_path / "plot.png") as axes:
        title, tick = axes.set_title("$x$"), axes.set_xlabel("$\\frac{")  # which as a formula would be an error
    assert not title.get_parse_math() and not tick.get_parse_math()
    assert (tmp_path / "plot.png").stat().st_size > 0
    assert Figure().subplots().set_title("$x$").get_parse_math(), "negative control: what is matplotlib's own setting"
