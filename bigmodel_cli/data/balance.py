"""Classes of uneven size: what there is to say of them, the weights that even them out, and an even order.

Shapes: N samples, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bigmodel_cli.core.sources import SourceWrapper
from bigmodel_cli.core.types import Batch

UNEVEN = 2  # the largest class this many times the smallest is worth a line


def uneven(counts: Sequence[int], classes: Sequence[str]) -> str | None:
    """The largest and the smallest class, where they differ by a factor of UNEVEN or more."""
    low, high = min(counts, default=0), max(counts, default=0)
    if high < UNEVEN * max(low, 1):
        return None
    few, many = classes[counts.index(low)], classes[counts.index(high)]
    return f"classes are uneven: {high:,} {many}, {low:,} {few}"


def class_weights(labels: Tensor, num_classes: int) -> Tensor:
    """(K,) float32 from `labels` (N,) int64: n / (K n_k), so that every class counts alike; 0 for an absent class.

    The mean over the samples is 1: the learning rate keeps its meaning.
    """
    counts = labels.bincount(minlength=num_classes).double()
    present = counts > 0
    return torch.where(present, len(labels) / (present.sum() * counts.clamp(min=1)), 0).float()


def balanced_order(labels: Tensor, generator: torch.Generator) -> Tensor:
    """(N,) int64 in which each class of `labels` (N,) has N / K places, to within one.

    A value is a sample's index plus N times how often the sample stands before it: a class of few is gone
    through whole before any of it comes again, and of a large one an epoch sees a part, drawn anew each time.
    """
    total = len(labels)
    members = [m for m in labels.argsort(stable=True).split(labels.bincount().tolist()) if len(m)]
    places, rest = divmod(total, len(members))
    extra = set(torch.randperm(len(members), generator=generator)[:rest].tolist())
    chosen = []
    for k, own in enumerate(members):
        wanted = places + (k in extra)
        rounds = -(-wanted // len(own))
        again = [own[torch.randperm(len(own), generator=generator)] + total * r for r in range(rounds)]
        chosen.append(torch.cat(again)[:wanted] if again else own[:0])
    return torch.cat(chosen)[torch.randperm(total, generator=generator)]


class Repeated(SourceWrapper):
    """`source` under indices of any size, modulo its length.

    A batch keeps the index as it was asked for: augmentation is keyed by it, so that a
    sample that comes twice in an epoch comes as two images.
    """

    keeps_order = False

    def gather(self, indices: Tensor) -> Batch:
        return {**self.source.gather(indices % len(self.source)), "index": indices}

    def name(self, index: int) -> str:
        return self.source.name(index % len(self.source))
