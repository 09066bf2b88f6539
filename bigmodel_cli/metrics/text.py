"""Metrics of language models and translation, and the loss of every task. Shapes: N samples, R resamples."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bigmodel_cli.core.registry import metrics
from bigmodel_cli.core.tokenizers.tokens import require_package
from bigmodel_cli.metrics.intervals import Outputs, Statistic, ratio_of


@metrics.register(better="min")
def loss(out: Outputs) -> Tensor | Statistic:
    """The mean loss per sample; for text, in nats per token."""
    return ratio_of(out["nats"], out["count"]) if "nats" in out else out["loss"]


@metrics.register(better="min", needs=("nats", "count"))
def perplexity(out: Outputs) -> Statistic:
    """exp of the loss in nats per token."""
    nats = ratio_of(out["nats"], out["count"])
    return lambda weights: nats(weights).clamp(max=700).exp()


@metrics.register(better="min", needs=("nats", "bytes"))
def bits_per_byte(out: Outputs) -> Statistic:
    """Bits per byte of UTF-8, comparable between models of different tokenizers."""
    return ratio_of(out["nats"].double() / math.log(2), out["bytes"])


@metrics.register(better="max", needs=("hypotheses", "references"))
def bleu(out: Outputs) -> Statistic:
    """Corpus BLEU by sacrebleu (Post 2018), from 0 to 100."""
    return _corpus(require_package("sacrebleu.metrics").BLEU(), out)


@metrics.register(better="max", needs=("hypotheses", "references"))
def chrf(out: Outputs) -> Statistic:
    """Corpus chrF by sacrebleu (Popović 2015), from 0 to 100."""
    return _corpus(require_package("sacrebleu.metrics").CHRF(), out)


def _corpus(metric: Any, out: Outputs) -> Statistic:
    """A sacrebleu metric over resampled sentences (Koehn 2004): the counts of each are kept, and their sums scored."""
    rows = metric._extract_corpus_statistics(out["hypotheses"], [out["references"]])
    counts = torch.tensor(rows, dtype=torch.float64)

    def statistic(weights: Tensor) -> Tensor:
        sums = (weights @ counts).round().long().tolist()
        return torch.tensor([metric._compute_score_from_stats(row).score for row in sums], dtype=torch.float64)

    return statistic
