"""Precision, recall and F1 of each class."""

from __future__ import annotations

from bigmodel_cli.core.registry import report_figures
from bigmodel_cli.insight.evaluated import Evaluated
from bigmodel_cli.insight.page import note, table

MOST = 100


@report_figures.register(of=("classification",), title="Per class", order=20)
def per_class(found: Evaluated) -> str:
    """Classes that occur, the lowest F1 first."""
    rows = [row for row in found.values["per_class"] if row["f1"] is not None]
    rows.sort(key=lambda row: row["f1"])
    columns = ("precision", "recall", "f1")
    cells = [
        (row["class"], *("-" if row[c] is None else f"{row[c]:.2%}" for c in columns), f"{row['support']:,}")
        for row in rows[:MOST]
    ]
    body = table(("class", "precision", "recall", "F1", "samples"), cells, numeric=True)
    if len(rows) > MOST:
        body += note(f"the {MOST} classes with the lowest F1 of {len(rows):,}; eval --json has all")
    return body
