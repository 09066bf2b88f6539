"""Plots with matplotlib, without a display."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bigmodel_cli.core.errors import MachineError
from bigmodel_cli.core.extras import install_line
from bigmodel_cli.core.files import atomic_files


@contextmanager
def drawing(path: Path, rows: int = 1, columns: int = 1, size: tuple[float, float] = (6.0, 4.0)) -> Iterator[Any]:
    """Axes to draw on, saved to `path` as an image on exit; `size` is the size of each in inches.

    Raises:
        MachineError: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        hint = install_line("plots")
        raise MachineError("matplotlib is not installed", "plots need the extra plots", hint) from None
    with rc_context({"text.parse_math": False}):  # names are shown as they are: a "$" starts no formula
        figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
        yield figure.subplots(rows, columns)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        if axes.images:  # lines over a picture would be part of it
            axes.grid(visible=False)
        else:
            axes.grid(visible=True, alpha=0.3)
    kind = path.suffix.removeprefix(".") or "png"
    atomic_files.replace(path, lambda draft: figure.savefig(draft, dpi=120, format=kind), lambda: 1 << 20)
