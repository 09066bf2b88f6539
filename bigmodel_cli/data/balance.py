"""Class imbalance: a note about it, class weights for the loss, and class-balanced sampling.

Shapes: N samples, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bigmodel_cli.core.sources import SourceWrapper
from bigmodel_cli.core.types import Batch

IMBALANCE_RATIO = 2  # ratio of the largest to the smallest class that is worth a note


def describe_imbalance(counts: Sequence[int], classes: Sequence[str]) -> str | None:
    """A line with the largest and the smallest class, if they differ by a factor of IMBALANCE_RATIO or more.

    A difference of one sample is what a split makes of a few.
    """
    low, high = min(counts, default=0), max(counts, default=0)
    if high < IMBALANCE_RATIO * max(low, 1) or high - low < 2:
        return None
    few, many = classes[counts.index(low)], classes[counts.index(high)]
    share = high / sum(counts)  # the accuracy of who always says it
    return f"classes are imbalanced: {high:,} of {many!r} ({share:.0%}), {low:,} of {few!r}"


def class_weights(labels: Tensor, num_classes: int) -> Tensor:
    """(K,) float32 from `labels` (N,) int64: N / (K n_k), so that every class counts equally; 0 for an absent class.

    The mean over the samples is 1, so the learning rate keeps its scale.
    """
    counts = labels.bincount(minlength=num_classes).double()
    present = counts > 0
    return torch.where(present, len(labels) / (present.sum() * counts.clamp(min=1)), 0).float()


def balanced_order(labels: Tensor, generator: torch.Generator) -> Tensor:
    """(N,) int64: a sample order in which each class of `labels` (N,) occurs N / K times, to within one.

    The r-th repetition of a sample is encoded as its index plus r N. All samples of a small class are used
    before any is repeated. Of a large class, each epoch uses another random part.
    """
    total = len(labels)
    members = [m for m in labels.argsort(stable=True).split(labels.bincount().tolist()) if len(m)]
    places, rest = divmod(total, len(members))
    extra = set(torch.randperm(len(members), generator=generator)[:rest].tolist())
    chosen = []
    for k, own in enumerate(members):
        count = places + (k in extra)
        rounds = -(-count // len(own))
        repeated = [own[torch.randperm(len(own), generator=generator)] + total * r for r in range(rounds)]
        chosen.append(torch.cat(repeated)[:count] if repeated else own[:0])
    return torch.cat(chosen)[torch.randperm(total, generator=generator)]


class CyclicSource(SourceWrapper):
    """`source` with indices of any size, taken modulo its length.

    A batch keeps the original index. Augmentation is keyed by it, so that a repeated
    sample is augmented differently each time.
    """

    keeps_order = False

    def gather(self, indices: Tensor) -> Batch:
        return {**self.source.gather(indices % len(self.source)), "index": indices}

    def name(self, index: int) -> str:
        return self.source.name(index % len(self.source))
