"""Classification reports with confidence intervals. Shapes: N samples, K classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.insight.trust.selective import selective
from bigmodel_cli.metrics.classification import confidence, predicted
from bigmodel_cli.metrics.intervals import Figure, measure
from bigmodel_cli.tasks.labelled import METRICS

MAX_MATRIX = 100
"""The most classes whose confusion matrix is reported."""
MAX_PAIRS = 100
"""The most pairs of confused classes in a report."""


@dataclass(frozen=True)
class ClassificationReport:
    """Headline metrics, per-class metrics, the confusion matrix, and the wrong predictions.

    `confusion` is (K,K) with true classes as rows; None for more than MAX_MATRIX classes, since it grows with K^2.
    `confused` holds (true class, predicted class, samples) of the pairs confused most often, at most MAX_PAIRS.
    `wrong` holds (sample index, true class, predicted class, confidence), most confident first.
    `selective` has the accuracy on the most confident samples; see :func:`selective`.
    `unseen` counts samples of classes unknown to the model, which no metric includes.
    """

    headline: dict[str, Figure]
    per_class: list[dict[str, Any]]
    confusion: list[list[int]] | None
    confused: list[tuple[str, str, int]]
    wrong: list[tuple[int, str, str, float]]
    samples: int
    unseen: int
    selective: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return {
            "samples": self.samples,
            "unseen": self.unseen,
            "headline": {name: figure.to_dict() for name, figure in self.headline.items()},
            "per_class": self.per_class,
            "selective": self.selective,
            "confusion": self.confusion,
            "confused": [{"true": t, "predicted": p, "samples": n} for t, p, n in self.confused],
            "wrong_count": len(self.wrong),
        }


def classification_report(
    logits: Tensor,
    labels: Tensor,
    losses: Tensor,
    classes: Sequence[str],
    seed: int = 0,
    names: Sequence[str] = METRICS,
    scores: bool = False,
) -> ClassificationReport:
    """Compare logits with labels; headline metrics have 95% percentile bootstrap intervals.

    Args:
        logits: (N,K) float.
        labels: (N,) int64. -1 is a class unknown to the model; it counts as `unseen` and enters no metric.
        losses: (N,) float, per sample.
        classes: the K class names.
        seed: of the bootstrap.
        names: the registered metrics in the headline.
        scores: they are scores and no probabilities: the largest is the confidence.

    Raises:
        InputError: a logit is NaN.
    """
    _check_numbers(logits)
    known = labels >= 0
    index = known.nonzero().flatten()
    out = {"logits": logits[known].float(), "label": labels[known], "loss": losses[known].double()}
    labels, predictions, confidences = (
        out["label"],
        predicted(out),
        (out["logits"].amax(1) if scores else confidence(out)),
    )
    k = len(classes)
    correct = predictions == labels
    matrix = torch.bincount(labels * k + predictions, minlength=k * k).view(k, k).tolist() if k <= MAX_MATRIX else None
    headline = measure(names, out, seed) if len(labels) else {}
    mistakes = (~correct).nonzero().flatten()
    mistakes = mistakes[confidences[mistakes].argsort(descending=True, stable=True)]
    columns = (values[mistakes].tolist() for values in (index, labels, predictions, confidences))
    wrong = [(i, classes[true], classes[guess], p) for i, true, guess, p in zip(*columns, strict=True)]
    return ClassificationReport(
        headline=headline,
        per_class=_per_class(labels, predictions, classes),
        confusion=matrix,
        confused=_confused(labels[~correct], predictions[~correct], classes),
        wrong=wrong,
        samples=len(labels),
        unseen=int((~known).sum()),
        selective=selective(confidences, correct),
    )


def _check_numbers(logits: Tensor) -> None:
    broken = int(logits.isnan().any(1).sum())
    if broken:
        raise InputError(f"the model returns NaN for {broken} of {len(logits)} samples", "expected finite logits")


def _confused(labels: Tensor, predictions: Tensor, classes: Sequence[str]) -> list[tuple[str, str, int]]:
    """The pairs of classes confused most often, from the labels and predictions (W,) of wrong predictions."""
    pairs, counts = (labels * len(classes) + predictions).unique(return_counts=True)
    most = counts.argsort(descending=True, stable=True)[:MAX_PAIRS]
    found = zip(pairs[most].tolist(), counts[most].tolist(), strict=True)
    return [(classes[pair // len(classes)], classes[pair % len(classes)], n) for pair, n in found]


def _per_class(labels: Tensor, predictions: Tensor, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Precision, recall and F1 of each class; None if undefined (0/0)."""
    rows = []
    of = (labels[labels == predictions], labels, predictions)
    hits, supports, predicted_counts = (x.bincount(minlength=len(classes)).tolist() for x in of)
    for name, hit, support, predicted_count in zip(classes, hits, supports, predicted_counts, strict=True):
        rows.append({
            "class": name,
            "precision": hit / predicted_count if predicted_count else None,
            "recall": hit / support if support else None,
            "f1": 2 * hit / (support + predicted_count) if support + predicted_count else None,
            "support": support,
        })  # fmt: skip
    return rows
