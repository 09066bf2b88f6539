"""Several labels per sample: how well each is found, and the samples with most errors."""

from __future__ import annotations

from bigmodel_cli.core.registry import report_figures
from bigmodel_cli.insight.charts import bars, reliability
from bigmodel_cli.insight.evaluated import Evaluated
from bigmodel_cli.insight.page import charts, gallery
from bigmodel_cli.metrics.classification import BINS

MOST, MOST_LABELS = 12, 40


@report_figures.register(of=("labels",), title="Labels", order=10)
def several_labels(found: Evaluated) -> str:
    """F1 of each label, the lowest first; reliability over all labels; samples with most errors."""
    out = found.outputs
    rows = sorted((r for r in found.values["per_label"] if r["f1"] is not None), key=lambda r: r["f1"])[:MOST_LABELS]
    below = "the lowest first" + (f", {MOST_LABELS} labels" if len(rows) == MOST_LABELS else "")
    each = bars("F1 by label", [(r["label"], r["f1"]) for r in rows], [f"{r['f1']:.1%}" for r in rows], below)
    known = out["targets"] >= 0
    said, true = out["logits"].sigmoid()[known], (out["targets"] == 1)[known]
    place = (said * BINS).ceil().long().clamp(1, BINS) - 1
    bins = []
    for i in range(BINS):
        inside = place == i
        n = int(inside.sum())
        bins.append((i / BINS, (i + 1) / BINS, float(true[inside].double().mean()) if n else 0.0, n))
    diagram = reliability("Reliability", bins, "share of labels that hold by their probability, over all labels")
    errors = ((out["decisions"] != (out["targets"] == 1)) & known).sum(1)
    worst = [i for i in errors.argsort(descending=True, stable=True)[:MOST].tolist() if errors[i]]
    classes = found.task.spec.classes

    def caption(i: int) -> str:
        held = out["targets"][i] == 1
        wrong = (out["decisions"][i] != held) & known[i]
        missed = ", ".join(classes[k] for k in (wrong & held).nonzero().flatten().tolist())
        added = ", ".join(classes[k] for k in (wrong & ~held).nonzero().flatten().tolist())
        said = [f"missed {missed}" if missed else "", f"added {added}" if added else "", found.name(i)]
        return "; ".join(filter(None, said))

    pictures = "<h3>Most errors</h3>" + gallery([(found.view(i), caption(i)) for i in worst]) if worst else ""
    return charts([each, diagram]) + pictures
