"""Of classifiers. Shapes: N samples, K classes, R resamples; `logits` (N,K) and `label` (N,) without unknown ones."""

from __future__ import annotations

import torch
from torch import Tensor

from bigmodel_cli.core.registry import metrics
from bigmodel_cli.metrics.intervals import Outputs, Statistic

BINS = 15
NEEDS = ("logits", "label")


@metrics.register(better="max", share=True, needs=NEEDS)
def accuracy(out: Outputs) -> Tensor:
    """Share of samples whose likeliest class is the right one (top-1)."""
    return predicted(out) == out["label"]


@metrics.register(better="max", share=True, needs=NEEDS)
def top5_accuracy(out: Outputs) -> Tensor | None:
    """Share of samples whose right class is among the five likeliest; nothing for five classes or fewer."""
    logits: Tensor = out["logits"]
    return (logits.topk(5, 1).indices == out["label"][:, None]).any(1) if logits.shape[1] > 5 else None


@metrics.register(better="max", needs=NEEDS)
def macro_f1(out: Outputs) -> Statistic:
    """The mean F1 of the classes that are there (true or predicted), each counting the same."""
    labels, said, k = out["label"], predicted(out), out["logits"].shape[1]
    right = (labels == said).nonzero().flatten()

    def statistic(weights: Tensor) -> Tensor:
        hit = _grouped(weights[:, right], labels[right], k)
        either = _grouped(weights, labels, k) + _grouped(weights, said, k)
        return (2 * hit / either.clamp(min=1e-12)).sum(1) / (either > 0).sum(1)

    return statistic


@metrics.register(better="min", needs=NEEDS)
def ece(out: Outputs) -> Statistic:
    """Expected calibration error, 15 equal bins (Guo et al. 2017): sum_b |sum of (confidence - right)| / n."""
    sure = confidence(out)
    bins = (sure * BINS).ceil().long().clamp(1, BINS) - 1
    gap = sure.double() - accuracy(out).double()
    return lambda weights: _grouped(weights * gap, bins, BINS).abs().sum(1) / weights.sum(1)


def predicted(out: Outputs) -> Tensor:
    """(N,) the likeliest class: of the logits, since the first of fp32 probabilities that round to equal may not be."""
    return out["logits"].argmax(1)  # type: ignore[no-any-return]


def confidence(out: Outputs) -> Tensor:
    """(N,) the probability of the predicted class."""
    return out["logits"].softmax(1).gather(1, predicted(out)[:, None]).flatten()  # type: ignore[no-any-return]


def _grouped(weights: Tensor, group: Tensor, count: int) -> Tensor:
    """(R,N) weights summed by group -> (R,count)."""
    zeros = torch.zeros(len(weights), count, dtype=weights.dtype)
    return zeros.index_add_(1, group, weights)
