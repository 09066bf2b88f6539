"""How good translations are: BLEU and chrF by sacrebleu, so that figures compare with the literature."""

from __future__ import annotations

from typing import Any

import torch

from bigmodel_cli.core.registry import reports
from bigmodel_cli.core.tokens import require_package, tokenizer
from bigmodel_cli.core.types import Source
from bigmodel_cli.insight.classification import Figure
from bigmodel_cli.insight.reports import Outputs, Report, Table, headline, plain

RESAMPLES = 200


@reports.register()
def translation(task: Any, data: Any, source: Source, outputs: Outputs, wrong: int) -> Report:
    """BLEU and chrF over the split, 95% bootstrap intervals over sentences (Koehn 2004), and the worst sentences."""
    metrics = require_package("sacrebleu.metrics")
    out = outputs()
    known = tokenizer(task.spec)
    said = [known.decode(ids) for ids in out["answer"].tolist()]
    wanted = list(source.targets)  # type: ignore[attr-defined]  # as they were written, whatever the tokens make of them
    figures = {}
    signature = ""
    for name, metric in (("bleu", metrics.BLEU()), ("chrf", metrics.CHRF())):
        value = metric.corpus_score(said, [wanted]).score
        # sacrebleu keeps each sentence's counts: a resample is a sum of them.
        counts = torch.tensor(metric._extract_corpus_statistics(said, [wanted]), dtype=torch.float64)
        picks = torch.randint(len(said), (RESAMPLES, len(said)), generator=torch.Generator().manual_seed(0))
        drawn = [metric._compute_score_from_stats(counts[p].sum(0).long().tolist()).score for p in picks]
        low, high = torch.tensor(drawn).quantile(torch.tensor([0.025, 0.975])).tolist()
        figures[name] = Figure(value, low, high)
        signature = signature or str(metric.get_signature())
    nats = float(out["nats"].double().sum() / out["count"].double().sum())
    sentence = metrics.CHRF()
    scores = [sentence.sentence_score(a, [b]).score for a, b in zip(said, wanted, strict=True)]
    worst = sorted(range(len(said)), key=scores.__getitem__)[:wrong]
    mistakes = [{"name": source.name(i), "true": wanted[i], "predicted": said[i], "chrf": scores[i]} for i in worst]
    values = {"samples": len(said), "headline": plain(figures), "loss": nats, "signature": signature, "wrong": mistakes}
    tables: list[Table] = [headline(figures)]
    if mistakes:
        rows: list[tuple[str, ...]] = [
            (str(m["name"]), str(m["true"]), str(m["predicted"]), f"{m['chrf']:.1f}") for m in mistakes
        ]
        tables.append(("lowest chrF", ("sample", "reference", "answer", "chrF"), rows, False))
    return Report(values, tables, [f"loss {nats:.4f} nats a token; {signature}"])
