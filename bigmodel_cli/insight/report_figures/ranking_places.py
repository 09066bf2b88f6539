"""Where the held-out items come in the ranking, beside simpler rankings."""

from __future__ import annotations

import torch

from bigmodel_cli.core.registry import report_figures
from bigmodel_cli.insight.charts import SHARES, bars, line_chart
from bigmodel_cli.insight.evaluated import Evaluated
from bigmodel_cli.insight.page import charts, table

DEPTHS = (1, 2, 3, 5, 10, 20, 50, 100)
MOST, SHOWN = 8, 5


@report_figures.register(of=("ranking",), title="Rankings", order=10)
def ranking_places(found: Evaluated) -> str:
    """Users whose held-out item is among the first k; NDCG@10 beside the baselines; recommendations of some users."""
    ranks = found.outputs["rank"]
    first = ranks.masked_fill(ranks <= 0, torch.inf).amin(1)  # 0 is padding
    line = [(float(k), float((first <= k).double().mean())) for k in DEPTHS]
    drawn = [line_chart("Share of users with a hit among the first k", [("hit rate", line)], "across: k", SHARES)]
    rivals = {name: values["ndcg_10"] for name, values in found.values["baselines"].items()}
    if rivals:
        own = found.values["headline"]["ndcg_10"]["value"]
        rows = [("this model", own), *rivals.items()]
        drawn.append(bars("NDCG@10", rows, [f"{v:.4f}" for _, v in rows]))
    spec, out = found.task.spec, found.outputs
    lines = []
    for i in range(min(MOST, len(first))):
        items = [spec.title(int(k)) for k in out["top"][i, :SHOWN] if k >= 0]
        place = f"{first[i]:.0f}" if torch.isfinite(first[i]) else "-"
        lines.append((spec.user_id(int(out["user"][i])), place, " · ".join(items)))
    head = ("user", "place of the held-out item", "recommended")
    return charts(drawn) + "<h3>Some users</h3>" + table(head, lines)
