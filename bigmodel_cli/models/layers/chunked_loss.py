"""Cross-entropy over a large vocabulary, with only one chunk of the logits in memory at a time.

For a batch of 8,192 tokens and GPT-2's vocabulary, the logits take 1.6 GB in fp32, and their gradient as
much again. Shapes: N tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

MAX_CHUNK_LOGITS = 1 << 24  # 64 MB in fp32


def chunked_cross_entropy(
    head: nn.Linear, x: Tensor, targets: Tensor, loss: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Per-token loss (N,) of hidden states `x` (N,D) against `targets` (N,); 0 where the target is negative.

    `head` maps (N,D) to (N,V). Beyond one chunk, the logits are recomputed in the backward pass: a third more
    compute in the head, for the memory of a single chunk.
    """

    def chunk_loss(x: Tensor, targets: Tensor) -> Tensor:
        return loss(head(x).float(), targets.clamp(min=0)) * (targets >= 0)

    rows = max(MAX_CHUNK_LOGITS // head.out_features, 1)
    if len(x) <= rows:
        return chunk_loss(x, targets)
    chunks = zip(x.split(rows), targets.split(rows), strict=True)
    return torch.cat([checkpoint(chunk_loss, a, b, use_reentrant=False) for a, b in chunks])
