"""Classification metrics. Shapes: N samples, K classes, R resamples; `logits` (N,K), `label` (N,) of known classes."""

from __future__ import annotations

import torch
from torch import Tensor

from bigmodel_cli.core.registry import metrics
from bigmodel_cli.metrics.intervals import Outputs, Statistic

BINS = 15
NEEDS = ("logits", "label")


@metrics.register(better="max", share=True, needs=NEEDS)
def accuracy(out: Outputs) -> Tensor:
    """Fraction of samples whose most likely class is correct (top-1)."""
    return predicted(out) == out["label"]


@metrics.register(better="max", share=True, needs=NEEDS)
def top5_accuracy(out: Outputs) -> Tensor | None:
    """Fraction of samples whose class is among the five most likely; undefined for five classes or fewer."""
    logits: Tensor = out["logits"]
    return (logits.topk(5, 1).indices == out["label"][:, None]).any(1) if logits.shape[1] > 5 else None


@metrics.register(better="max", needs=NEEDS, least=0, most=1)
def macro_f1(out: Outputs) -> Statistic:
    """The unweighted mean F1 over the classes that occur (as true or predicted class)."""
    labels, predictions, k = out["label"], predicted(out), out["logits"].shape[1]
    correct = (labels == predictions).nonzero().flatten()

    def statistic(weights: Tensor) -> Tensor:
        hit = _group_sums(weights[:, correct], labels[correct], k)
        either = _group_sums(weights, labels, k) + _group_sums(weights, predictions, k)
        return (2 * hit / either.clamp(min=1e-12)).sum(1) / (either > 0).sum(1)

    return statistic


@metrics.register(better="min", needs=NEEDS, least=0, most=1)
def ece(out: Outputs) -> Statistic:
    """Expected calibration error, 15 equal bins (Guo et al. 2017): sum_b |sum of (confidence - correct)| / n."""
    confidences = confidence(out)
    bins = (confidences * BINS).ceil().long().clamp(1, BINS) - 1
    gap = confidences.double() - accuracy(out).double()
    return lambda weights: _group_sums(weights * gap, bins, BINS).abs().sum(1) / weights.sum(1)


def predicted(out: Outputs) -> Tensor:
    """(N,) the most likely class. It uses the logits, because fp32 probabilities can round to ties."""
    return out["logits"].argmax(1)  # type: ignore[no-any-return]


def confidence(out: Outputs) -> Tensor:
    """(N,) the probability of the predicted class."""
    return out["logits"].softmax(1).gather(1, predicted(out)[:, None]).flatten()  # type: ignore[no-any-return]


def _group_sums(weights: Tensor, group: Tensor, count: int) -> Tensor:
    """Sum the weights (R,N) by group -> (R,count)."""
    zeros = torch.zeros(len(weights), count, dtype=weights.dtype)
    return zeros.index_add_(1, group, weights)
