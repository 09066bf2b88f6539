"""Whether confidence can be trusted: shares correct against confidence, and accuracy where the model is surest."""

from __future__ import annotations

import torch

from bigmodel_cli.core.registry import report_figures
from bigmodel_cli.insight.charts import SHARES, line_chart, reliability
from bigmodel_cli.insight.evaluated import Evaluated
from bigmodel_cli.insight.page import charts, note
from bigmodel_cli.metrics.classification import BINS, confidence, predicted
from bigmodel_cli.tasks.answers import gives_probabilities

POINTS = 100


@report_figures.register(of=("classification",), title="Confidence", order=30)
def calibration(found: Evaluated) -> str:
    """The reliability diagram, and accuracy over the most confident samples."""
    labels = found.outputs["label"]
    known = labels >= 0
    out = {"logits": found.outputs["logits"][known], "label": labels[known]}
    if not len(out["label"]):
        return ""
    correct, sure = predicted(out) == out["label"], confidence(out)
    order = sure.argsort(descending=True, stable=True)
    share = correct[order].double().cumsum(0) / torch.arange(1, len(order) + 1)
    places = sorted({max(1, round(len(order) * i / POINTS)) for i in range(5, POINTS + 1)})
    line = [(n / len(order), float(share[n - 1])) for n in places]
    selective = line_chart(
        "Accuracy on the most confident samples", [("accuracy", line)], "across: share of samples answered", SHARES
    )
    if not gives_probabilities(found.task):
        return note("The outputs are scores, not probabilities: the loss is not one of probabilities.") + charts(
            [selective]
        )
    bins = []
    place = (sure * BINS).ceil().long().clamp(1, BINS) - 1
    for i in range(BINS):
        inside = place == i
        n = int(inside.sum())
        bins.append((i / BINS, (i + 1) / BINS, float(correct[inside].double().mean()) if n else 0.0, n))
    below = "share correct by confidence; on the dashed line they are equal; darker: more samples"
    figure = found.values["headline"].get("ece")
    gap = (
        "" if figure is None else note(f"Expected calibration error {figure['value']:.4f}: the mean distance from it.")
    )
    return charts([reliability("Reliability", bins, below), selective]) + gap
