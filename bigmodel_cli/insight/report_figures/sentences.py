"""Translations beside their references."""

from __future__ import annotations

from html import escape

from bigmodel_cli.core.registry import report_figures
from bigmodel_cli.core.sources import TranslatedSource
from bigmodel_cli.core.tokenizers.tokens import require_package, tokenizer
from bigmodel_cli.insight.charts import histogram
from bigmodel_cli.insight.evaluated import Evaluated
from bigmodel_cli.insight.page import charts

MOST = 8


@report_figures.register(of=("translation",), title="Translations", order=10)
def sentences(found: Evaluated) -> str:
    """chrF of each sentence: its spread, and the lowest, middle and highest with source and reference."""
    known, source = tokenizer(found.task.spec), found.source
    assert isinstance(source, TranslatedSource)
    sentence = require_package("sacrebleu.metrics").CHRF()
    answers = [known.decode(ids) for ids in found.outputs["answer"].tolist()]
    references = [source.targets[found.index(i)] for i in range(len(answers))]
    scores = [float(sentence.sentence_score(a, [b]).score) for a, b in zip(answers, references, strict=True)]
    order = sorted(range(len(scores)), key=scores.__getitem__)
    middle = len(order) // 2
    groups = {"Lowest": order[:MOST], "Middle": order[middle : middle + MOST // 2], "Highest": order[::-1][: MOST // 2]}
    parts = [charts([histogram("chrF by sentence", scores)])]
    for title, places in groups.items():
        rows = [f"{found.view(i)}<p><b>{scores[i]:.0f}</b> {escape(answers[i])}<br>"
                f"<small>reference: {escape(references[i])}</small></p>" for i in places]  # fmt: skip
        parts.append(f"<h3>{title} chrF</h3>" + "".join(rows))
    return "".join(parts)
