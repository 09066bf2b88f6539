"""The loss of a large vocabulary without its logits: a chunk of them lives at a time.

With 8,192 tokens of a batch and GPT-2's vocabulary the logits take 1.6 GB in fp32, and as much again for
their gradient. Shapes: N tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

MOST_LOGITS = 1 << 24  # of a chunk: 64 MB in fp32


def chunked_cross_entropy(
    head: nn.Linear, x: Tensor, targets: Tensor, loss: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Each token's loss (N,) of the last layer's `x` (N,D) against `targets` (N,); 0 where the target is negative.

    `head` maps (N,D) to (N,V). What fits into one chunk is done at once; the logits of more are computed
    again for the gradient, a third of the head's work for all but one chunk of its memory.
    """

    def some(x: Tensor, targets: Tensor) -> Tensor:
        return loss(head(x).float(), targets.clamp(min=0)) * (targets >= 0)

    rows = max(MOST_LOGITS // head.out_features, 1)
    if len(x) <= rows:
        return some(x, targets)
    parts = zip(x.split(rows), targets.split(rows), strict=True)
    return torch.cat([checkpoint(some, a, b, use_reentrant=False) for a, b in parts])
