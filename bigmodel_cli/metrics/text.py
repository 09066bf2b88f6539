"""Of language models and translations, and the loss of every task. Shapes: N samples, R resamples."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bigmodel_cli.core.registry import metrics
from bigmodel_cli.core.tokens import require_package
from bigmodel_cli.metrics.intervals import Outputs, Statistic, ratio_of


@metrics.register(better="min")
def loss(out: Outputs) -> Tensor | Statistic:
    """The mean loss of a sample; of a text in nats a token."""
    return ratio_of(out["nats"], out["count"]) if "nats" in out else out["loss"]


@metrics.register(better="min", needs=("nats", "count"))
def perplexity(out: Outputs) -> Statistic:
    """exp of the loss in nats a token."""
    nats = ratio_of(out["nats"], out["count"])
    return lambda weights: nats(weights).clamp(max=700).exp()


@metrics.register(better="min", needs=("nats", "bytes"))
def bits_per_byte(out: Outputs) -> Statistic:
    """Bits a byte of UTF-8, which compares models of different tokenizers."""
    return ratio_of(out["nats"].double() / math.log(2), out["bytes"])


@metrics.register(better="max", needs=("said", "wanted"))
def bleu(out: Outputs) -> Statistic:
    """BLEU of the whole by sacrebleu (Post 2018), on a scale to 100."""
    return _corpus(require_package("sacrebleu.metrics").BLEU(), out)


@metrics.register(better="max", needs=("said", "wanted"))
def chrf(out: Outputs) -> Statistic:
    """chrF of the whole by sacrebleu (Popović 2015), on a scale to 100."""
    return _corpus(require_package("sacrebleu.metrics").CHRF(), out)


def _corpus(metric: Any, out: Outputs) -> Statistic:
    """A metric of sacrebleu over resampled sentences (Koehn 2004): it keeps each one's counts, whose sums it scores."""
    counts = torch.tensor(metric._extract_corpus_statistics(out["said"], [out["wanted"]]), dtype=torch.float64)

    def statistic(weights: Tensor) -> Tensor:
        sums = (weights @ counts).round().long().tolist()
        return torch.tensor([metric._compute_score_from_stats(row).score for row in sums], dtype=torch.float64)

    return statistic
