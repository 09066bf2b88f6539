"""Metrics of any number of labels per sample. Shapes: N samples, K labels, R resamples.

`logits` (N,K), `targets` (N,K) are 1, 0, or -1 if unknown, `decisions` (N,K) say which labels hold.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bigmodel_cli.core.registry import metrics
from bigmodel_cli.metrics.classification import BINS
from bigmodel_cli.metrics.intervals import Outputs, Statistic

DECIDED = ("decisions", "targets")
SCORED = ("logits", "targets")


@metrics.register(better="max", share=True, needs=SCORED)
def mean_average_precision(out: Outputs) -> Statistic | None:
    """The mean over the labels of the area under precision and recall, as sum of (R_i - R_i-1) P_i; labels without
    positives are left out."""
    logits, targets = out["logits"], out["targets"]
    columns = [k for k in range(logits.shape[1]) if (targets[:, k] == 1).any()]
    if not columns:
        return None
    sorted_columns = [_by_score(logits[:, k], targets[:, k]) for k in columns]

    def statistic(weights: Tensor) -> Tensor:
        values = torch.stack([_average_precision(weights, *column) for column in sorted_columns])
        return values.nanmean(0)  # a resample may miss a label's few positives

    return statistic


@metrics.register(better="max", share=True, needs=DECIDED)
def micro_f1(out: Outputs) -> Statistic:
    """F1 over all pairs of sample and label: 2 TP / (2 TP + FP + FN)."""
    hit, either = _hits(out)
    return lambda weights: 2 * (weights @ hit.sum(1)) / (weights @ either.sum(1)).clamp(min=1e-12)


@metrics.register(better="max", share=True, needs=DECIDED)
def label_macro_f1(out: Outputs) -> Statistic:
    """The unweighted mean over the labels of F1; 0 for a label that neither occurs nor is predicted."""
    hit, either = _hits(out)
    return lambda weights: (2 * (weights @ hit) / (weights @ either).clamp(min=1e-12)).mean(1)


@metrics.register(better="min", share=True, needs=DECIDED)
def hamming_loss(out: Outputs) -> Statistic:
    """The fraction of all pairs of sample and label that are decided wrongly."""
    known = out["targets"] >= 0
    wrong = ((out["decisions"] != (out["targets"] == 1)) & known).sum(1).double()
    count = known.sum(1).double()
    return lambda weights: (weights @ wrong) / (weights @ count).clamp(min=1e-12)


@metrics.register(better="max", share=True, needs=DECIDED)
def subset_accuracy(out: Outputs) -> Tensor:
    """The fraction of samples all of whose labels are decided correctly."""
    right = out["decisions"] == (out["targets"] == 1)
    return (right | (out["targets"] < 0)).all(1)


@metrics.register(better="min", needs=SCORED, least=0, most=1)
def label_ece(out: Outputs) -> Statistic:
    """Expected calibration error of the labels' probabilities, 15 equal bins over all pairs of sample and label."""
    known = out["targets"] >= 0
    probability = out["logits"].double().sigmoid()
    bins = (probability * BINS).ceil().long().clamp(1, BINS) - 1
    gap = torch.where(known, probability - (out["targets"] == 1).double(), 0.0)
    by_bin = torch.zeros(len(gap), BINS, dtype=torch.float64).scatter_add_(1, bins, gap)
    count = known.sum(1).double()
    return lambda weights: (weights @ by_bin).abs().sum(1) / (weights @ count).clamp(min=1e-12)


def _hits(out: Outputs) -> tuple[Tensor, Tensor]:
    """(N,K) true positives, and predicted plus true labels, which are 2 TP + FP + FN in sum."""
    known = out["targets"] >= 0
    true, decided = out["targets"] == 1, out["decisions"] & known
    return (true & decided).double(), true.double() + decided.double()


def _by_score(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The known samples by falling score: their places (M,), whether each is positive, and the last place of its
    group of equal scores."""
    places = (targets >= 0).nonzero().flatten()
    ordered, order = scores[places].double().sort(descending=True, stable=True)
    starts = torch.cat([torch.tensor([True]), ordered[1:] < ordered[:-1]])
    group = starts.cumsum(0) - 1
    ends = torch.cat([starts[1:], torch.tensor([True])]).nonzero().flatten()
    return places[order], targets[places][order] == 1, ends[group]


def _average_precision(weights: Tensor, places: Tensor, positive: Tensor, ends: Tensor) -> Tensor:
    """(R,) the average precision of one label; NaN for a resample without positives."""
    chosen = weights[:, places]
    mine = chosen * positive
    precision = (mine.cumsum(1) / chosen.cumsum(1).clamp(min=1e-12))[:, ends]
    return (mine * precision).sum(1) / mine.sum(1)
