"""Where a language model predicts well and badly."""

from __future__ import annotations

import math

from bigmodel_cli.core.registry import report_figures
from bigmodel_cli.insight.charts import histogram, line_chart
from bigmodel_cli.insight.evaluated import Evaluated, evenly
from bigmodel_cli.insight.page import charts, gallery

MOST, POINTS = 4, 200


@report_figures.register(of=("perplexity",), title="Windows of text", order=10)
def windows(found: Evaluated) -> str:
    """The loss of each window: spread, course over the text, and the hardest and easiest windows."""
    out = found.outputs
    counted = (out["count"] > 0).nonzero().flatten()
    if not len(counted):
        return ""
    bits = out["nats"][counted].double() / out["count"][counted] / math.log(2)
    order = out["index"][counted].argsort()
    course = bits[order]
    line = [(float(i), float(course[i])) for i in evenly(len(course), POINTS)]
    drawn = [
        histogram("Bits per token", bits.tolist(), below="windows by their mean"),
        line_chart("Over the text", [("bits per token", line)], "across: window"),
    ]
    ranked = counted[bits.argsort(descending=True, stable=True)].tolist()
    parts = [charts(drawn)]
    for title, places in (("Hardest", ranked[:MOST]), ("Easiest", ranked[::-1][:MOST])):
        cells = [(found.view(i), f"{float(out['nats'][i] / out['count'][i]) / math.log(2):.2f} bits per token, "
                  f"{found.name(i)}") for i in places]  # fmt: skip
        parts.append(f"<h3>{title}</h3>" + gallery(cells))
    return "".join(parts)
