"""The samples to look at: the most confident mistakes, and what the model is least sure of."""

from __future__ import annotations

from bigmodel_cli.core.registry import report_figures
from bigmodel_cli.insight.evaluated import Evaluated
from bigmodel_cli.insight.page import gallery
from bigmodel_cli.metrics.classification import confidence, predicted
from bigmodel_cli.tasks.answers import gives_probabilities

MOST = 12


@report_figures.register(of=("classification",), title="Samples to look at", order=40)
def mistakes(found: Evaluated) -> str:
    """Wrong predictions, the most confident first; then the samples whose two best classes are closest."""
    out, classes = found.outputs, found.task.spec.classes
    labels, guesses = out["label"], predicted(out)
    shares = confidence(out) if gives_probabilities(found.task) else out["logits"].amax(1)
    wrong = ((guesses != labels) & (labels >= 0)).nonzero().flatten()
    wrong = wrong[shares[wrong].argsort(descending=True, stable=True)][:MOST]

    def caption(i: int) -> str:
        value = f"{float(shares[i]):.1%}" if gives_probabilities(found.task) else f"score {float(shares[i]):.3g}"
        true = classes[labels[i]] if labels[i] >= 0 else "a class unknown to the model"
        said = f"{classes[guesses[i]]} ({value}), "
        return said + ("right" if guesses[i] == labels[i] else f"true: {true}") + f" · {found.name(i)}"

    parts = []
    if len(wrong):
        cells = [(found.view(i), caption(i)) for i in wrong.tolist()]
        parts.append("<h3>Mistakes, the most confident first</h3>" + gallery(cells))
    if len(classes) > 1:
        best = out["logits"].topk(2, dim=1)
        unsure = (best.values[:, 0] - best.values[:, 1]).argsort(stable=True)[:MOST].tolist()
        said = [f"{caption(i)} · runner-up {classes[int(best.indices[i, 1])]}" for i in unsure]
        cells = [(found.view(i), text) for i, text in zip(unsure, said, strict=True)]
        parts.append("<h3>Least certain</h3>" + gallery(cells))
    return "".join(parts)
