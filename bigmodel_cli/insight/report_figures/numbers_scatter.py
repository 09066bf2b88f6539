"""Predicted numbers against true ones, and the largest errors."""

from __future__ import annotations

from bigmodel_cli.core.registry import report_figures
from bigmodel_cli.insight.charts import histogram, scatter
from bigmodel_cli.insight.evaluated import Evaluated, evenly
from bigmodel_cli.insight.page import charts, gallery, note

MOST, POINTS, MOST_NUMBERS = 12, 800, 8


@report_figures.register(of=("numbers",), title="Predicted and true", order=10)
def numbers_scatter(found: Evaluated) -> str:
    """A point a sample for each number, the spread of errors, and the samples with the largest."""
    out, classes = found.outputs, found.task.spec.classes
    said, true = out["predictions"], out["values"]
    drawn = []
    for k, name in enumerate(classes[:MOST_NUMBERS]):
        places = evenly(len(said), POINTS)
        points = [(float(true[i, k]), float(said[i, k])) for i in places]
        drawn += [scatter(name, points, "true", "predicted")]
        drawn += [histogram(f"{name}: predicted minus true", (said[:, k] - true[:, k]).tolist())]
    body = charts(drawn)
    if len(said) > POINTS:
        body += note(f"{POINTS} of {len(said):,} samples are drawn, evenly spaced")
    if len(classes) > MOST_NUMBERS:
        body += note(f"{MOST_NUMBERS} of {len(classes)} numbers are drawn")
    worst = out["loss"].argsort(descending=True, stable=True)[:MOST].tolist()

    def caption(i: int) -> str:
        pairs = (f"{name} {said[i, k]:.4g}, true {true[i, k]:.4g}" for k, name in enumerate(classes[:3]))
        return "; ".join([*pairs, found.name(i)])

    return body + "<h3>Largest errors</h3>" + gallery([(found.view(i), caption(i)) for i in worst])
