"""Classification metrics with confidence intervals. Shapes: N samples, K classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bigmodel_cli.core.errors import InputError

BINS = 15
RESAMPLES = 1000
CHUNK = 4_000_000  # elements of a bootstrap chunk: 32 MB


@dataclass(frozen=True)
class Figure:
    """A metric with its 95% confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ClassificationReport:
    """Headline metrics, per-class metrics, the (K,K) confusion matrix (rows true), and the wrong predictions.

    `wrong` holds (sample index, true class, predicted class, confidence), most confident first.
    `unseen` counts samples of classes unknown to the model, which no metric includes.
    """

    headline: dict[str, Figure]
    per_class: list[dict[str, Any]]
    confusion: list[list[int]]
    wrong: list[tuple[int, str, str, float]]
    samples: int
    unseen: int

    def to_dict(self) -> dict[str, Any]:
        return {
            "samples": self.samples,
            "unseen": self.unseen,
            "headline": {k: {"value": f.value, "low": f.low, "high": f.high} for k, f in self.headline.items()},
            "per_class": self.per_class,
            "confusion": self.confusion,
            "wrong_count": len(self.wrong),
        }


def classification_report(
    logits: Tensor, labels: Tensor, losses: Tensor, classes: Sequence[str], seed: int = 0
) -> ClassificationReport:
    """Compare logits with labels; headline metrics have 95% percentile bootstrap intervals.

    Args:
        logits: (N,K) float.
        labels: (N,) int64. -1 is a class unknown to the model, counted as `unseen` and in no metric.
        losses: (N,) float, per sample.
        classes: the K class names.
        seed: of the bootstrap.

    Raises:
        InputError: a logit is NaN.
    """
    broken = int(logits.isnan().any(1).sum())
    if broken:
        raise InputError(f"the model returns NaN for {broken} of {len(logits)} samples", "expected finite logits")
    known = labels >= 0
    index = known.nonzero().flatten()
    logits, labels, losses = logits[known].float(), labels[known], losses[known].double()
    k = len(classes)
    probability = logits.softmax(1)
    # From logits: fp32 probabilities can round to ties, whose first is not necessarily the largest logit.
    predicted = logits.argmax(1)
    confidence = probability.gather(1, predicted[:, None]).flatten()
    right = predicted == labels
    confusion = torch.bincount(labels * k + predicted, minlength=k * k).view(k, k)
    bins = (confidence * BINS).ceil().long().clamp(1, BINS) - 1

    def mean_of(values: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda weights: weights @ values.double() / weights.sum(1)

    figures: dict[str, Callable[[Tensor], Tensor]] = {
        "top1": mean_of(right),
        # With five classes or fewer, top-5 accuracy is always 1.
        **({"top5": mean_of((logits.topk(5, 1).indices == labels[:, None]).any(1))} if k > 5 else {}),
        "loss": mean_of(losses),
        "macro_f1": lambda weights: _macro_f1(weights, labels, predicted, k),
        "ece": lambda weights: _ece(weights, bins, confidence.double() - right.double()),
    }
    headline = with_intervals(figures, len(labels), k, seed) if len(labels) else {}
    mistakes = (~right).nonzero().flatten()
    mistakes = mistakes[confidence[mistakes].argsort(descending=True, stable=True)]
    columns = (values[mistakes].tolist() for values in (index, labels, predicted, confidence))
    wrong = [(i, classes[true], classes[said], sure) for i, true, said, sure in zip(*columns, strict=True)]
    return ClassificationReport(
        headline, _per_class(confusion, classes), confusion.tolist(), wrong, len(labels), int((~known).sum())
    )


def _per_class(confusion: Tensor, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Precision, recall and F1 of each class; None where it is 0/0."""
    rows = []
    for i, name in enumerate(classes):
        hit, support, called = (int(x) for x in (confusion[i, i], confusion[i].sum(), confusion[:, i].sum()))
        rows.append({
            "class": name,
            "precision": hit / called if called else None,
            "recall": hit / support if support else None,
            "f1": 2 * hit / (support + called) if support + called else None,
            "support": support,
        })  # fmt: skip
    return rows


def with_intervals(figures: dict[str, Callable[[Tensor], Tensor]], n: int, k: int, seed: int) -> dict[str, Figure]:
    """Each metric on the whole sample, with the 2.5th and 97.5th percentiles over resamples (Efron 1979).

    A chunk of R resamples takes (R,N) and (R,K) doubles; R is chosen to keep both within `CHUNK` elements.
    """
    generator = torch.Generator().manual_seed(seed)
    whole = torch.ones(1, n, dtype=torch.float64)
    values = {name: float(figure(whole)) for name, figure in figures.items()}
    drawn: dict[str, list[Tensor]] = {name: [] for name in figures}
    size = max(1, min(RESAMPLES, CHUNK // max(n, k)))
    for start in range(0, RESAMPLES, size):
        count = min(size, RESAMPLES - start)
        picks = torch.randint(n, (count, n), generator=generator)
        weights = torch.zeros(count, n, dtype=torch.float64).scatter_add_(1, picks, torch.ones(count, n).double())
        for name, figure in figures.items():
            drawn[name].append(figure(weights))
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    result = {}
    for name, value in values.items():
        low, high = torch.cat(drawn[name]).quantile(ends).tolist()
        result[name] = Figure(value, low, high)
    return result


def _sum_by_group(weights: Tensor, group: Tensor, count: int) -> Tensor:
    """(R,N) weights summed by group -> (R,count)."""
    zeros = torch.zeros(len(weights), count, dtype=weights.dtype)
    return zeros.index_add_(1, group, weights)


def _macro_f1(weights: Tensor, labels: Tensor, predicted: Tensor, k: int) -> Tensor:
    """(R,N) -> (R,): the mean F1 over the classes that occur (true or predicted)."""
    right = (labels == predicted).nonzero().flatten()
    hit = _sum_by_group(weights[:, right], labels[right], k)
    either = _sum_by_group(weights, labels, k) + _sum_by_group(weights, predicted, k)
    return (2 * hit / either.clamp(min=1e-12)).sum(1) / (either > 0).sum(1)


def _ece(weights: Tensor, bins: Tensor, gap: Tensor) -> Tensor:
    """Expected calibration error, 15 equal bins (Guo et al. 2017): sum_b |sum of (confidence - right)| / n."""
    return _sum_by_group(weights * gap, bins, BINS).abs().sum(1) / weights.sum(1)
