"""How predicted ratings differ from given ones."""

from __future__ import annotations

from bigmodel_cli.core.registry import report_figures
from bigmodel_cli.insight.charts import bars, histogram
from bigmodel_cli.insight.evaluated import Evaluated
from bigmodel_cli.insight.page import charts

MOST = 12


@report_figures.register(of=("ratings",), title="Ratings", order=10)
def ratings_spread(found: Evaluated) -> str:
    """The spread of errors, and the mean prediction for each rating that was given."""
    out = found.outputs
    error = histogram("Predicted minus given", (out["prediction"] - out["rating"]).tolist())
    rows = []
    for value in out["rating"].unique().tolist()[:MOST]:
        chosen = out["rating"] == value
        rows.append((f"{value:g} ({int(chosen.sum()):,})", float(out["prediction"][chosen].mean())))
    each = bars("Mean prediction by given rating", rows, [f"{v:.2f}" for _, v in rows], "in brackets: how many")
    return charts([error, each])
