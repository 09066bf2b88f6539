"""Translation reports: BLEU and chrF from sacrebleu, so that scores are comparable with the literature."""

from __future__ import annotations

from typing import Any

from bigmodel_cli.core.registry import reports
from bigmodel_cli.core.sources import TranslatedSource
from bigmodel_cli.core.tokenizers.tokens import require_package, tokenizer
from bigmodel_cli.core.types import Source
from bigmodel_cli.insight.reports import Names, Outputs, Report, Table, headline, plain
from bigmodel_cli.metrics.intervals import measure


@reports.register(run_samples=200)  # each is decoded by beam search
def translation(task: Any, data: Any, source: Source, outputs: Outputs, wrong: int, names: Names) -> Report:
    """BLEU and chrF over the split, 95% bootstrap intervals over sentences (Koehn 2004), and the worst sentences."""
    metrics = require_package("sacrebleu.metrics")
    out = outputs()
    known = tokenizer(task.spec)
    hypotheses = [known.decode(ids) for ids in out["answer"].tolist()]
    assert isinstance(source, TranslatedSource)
    references = list(source.targets)  # the original text, not decoded tokens
    figures = measure(names, {**out, "hypotheses": hypotheses, "references": references})
    bleu = metrics.BLEU()
    bleu.corpus_score(hypotheses, [references])  # the signature records its settings
    signature = str(bleu.get_signature())
    nats = float(out["nats"].double().sum() / out["count"].double().sum())
    sentence = metrics.CHRF()
    scores = [sentence.sentence_score(a, [b]).score for a, b in zip(hypotheses, references, strict=True)]
    worst = sorted(range(len(hypotheses)), key=scores.__getitem__)[:wrong]
    mistakes = [
        {"name": source.name(i), "true": references[i], "predicted": hypotheses[i], "chrf": scores[i]} for i in worst
    ]
    values = {"samples": len(hypotheses), "headline": plain(figures), "loss": nats, "signature": signature,
              "wrong": mistakes}  # fmt: skip
    tables: list[Table] = [headline(figures)]
    if mistakes:
        rows: list[tuple[str, ...]] = [
            (str(m["name"]), str(m["true"]), str(m["predicted"]), f"{m['chrf']:.1f}") for m in mistakes
        ]
        tables.append(("lowest chrF", ("sample", "reference", "answer", "chrF"), rows, False))
    cut = int(out["unfinished"].sum())
    limit = f"50 tokens more than the source, at most {task.spec.context}"
    notes = [f"{cut:,} of {len(hypotheses):,} answers stop at their limit: {limit}"]
    return Report(values, tables, [f"loss {nats:.4f} nats per token; {signature}", *notes * bool(cut)])
