"""Cross-entropy over a large vocabulary, with only one chunk of the logits in memory at a time.

For a batch of 8,192 tokens and GPT-2's vocabulary, the logits take 1.6 GB in fp32, and their gradient as
much again. Shapes: N tokens, D width, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

MAX_CHUNK_LOGITS = 1 << 24  # 64 MB in fp32
GPU_MEMORY_FRACTION, BYTES_PER_LOGIT = 0.1, 6  # of the GPU's memory for one chunk; bf16 and fp32 of each logit


def fit_chunks_to_gpu(memory: float) -> None:
    """Let a chunk take a tenth of the `memory` (bytes) of this process's GPU: most batches then fit in one.

    With GPT-2 124M, to compute the head again is a tenth of all products of a step.
    """
    global MAX_CHUNK_LOGITS
    MAX_CHUNK_LOGITS = max(MAX_CHUNK_LOGITS, int(GPU_MEMORY_FRACTION * memory / BYTES_PER_LOGIT))


@contextlib.contextmanager
def chunks_of_gpu(memory: float) -> Iterator[None]:
    """In the block chunks are as on a GPU with `memory` bytes, for planning."""
    global MAX_CHUNK_LOGITS
    before = MAX_CHUNK_LOGITS
    fit_chunks_to_gpu(memory)
    try:
        yield
    finally:
        MAX_CHUNK_LOGITS = before


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


def losses_where(real: Tensor, of: Callable[[Tensor, Tensor], Tensor], x: Tensor, targets: Tensor) -> Tensor:
    """The losses `of` states (N,D) and targets (N,), where `real` (B,T) is True, and 0 elsewhere: (B,T).

    `x` is (B,T,D), `targets` (B,T). The CPU skips what is not real. On other devices the host would have to wait for
    their number, so all are computed: `of` must take any target.
    """
    if x.device.type == "cpu":
        losses = of(x[real], targets[real])
        return torch.zeros(real.shape, dtype=losses.dtype).masked_scatter(real, losses)
    return of(x.flatten(0, 1), targets.flatten()).view(real.shape).masked_fill(~real, 0)
