"""The sample order of an epoch over shards: shuffled, but still nearly sequential in each shard.

Shards are shuffled, then the samples within windows of them. That is what a shuffle buffer
does, but as a plain permutation determined by the generator. So resuming and splitting over
processes need no special handling.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LANES = 8


def shard_order(
    counts: Sequence[int], shards: Sequence[int], window: int, steps: int, generator: torch.Generator
) -> Tensor:
    """(n,) int64: a permutation of the n samples of shards with `counts` samples, for an epoch of `steps` steps.

    The sequence is cut into LANES lanes of consecutive shards, and each step takes an equal share of each
    lane. So if a process takes the r-th of R parts of every step, where R divides LANES, it reads only its
    own lanes (except for rounding, if a step is not a multiple of LANES).

    Args:
        counts: samples in each shard.
        shards: the order in which they are read.
        window: the number of samples shuffled together.
        steps: optimizer steps in the epoch, of nearly equal size, as ``tensor_split`` splits them.
    """
    starts = torch.tensor([0, *counts]).cumsum(0)
    sequence = torch.cat([torch.arange(int(starts[s]), int(starts[s + 1])) for s in shards])
    parts = [_shuffle(part, generator) for part in sequence.split(window)]
    return _interleave_lanes(torch.cat(parts), steps)


def next_shards(counts: Sequence[int], shards: Sequence[int]) -> dict[int, int]:
    """The successor of each shard in the order `shards`; none at the end of a lane."""
    begins = torch.tensor([0, *(counts[s] for s in shards)]).cumsum(0)[:-1]
    piece = (begins * LANES // sum(counts)).tolist()
    pairs = zip(shards, shards[1:], piece, piece[1:], strict=False)
    return {shard: after for shard, after, here, there in pairs if here == there}


def _shuffle(part: Tensor, generator: torch.Generator) -> Tensor:
    return part[torch.randperm(len(part), generator=generator)]


def _interleave_lanes(sequence: Tensor, steps: int) -> Tensor:
    """Rearrange `sequence` so that the k-th of LANES parts of every step comes from the k-th lane."""
    whole, more = divmod(len(sequence), steps)
    sizes = torch.full((steps,), whole)
    sizes[:more] += 1
    lane = torch.arange(LANES)
    shares = sizes[:, None] // LANES + (lane < sizes[:, None] % LANES)  # (steps, LANES), as tensor_split splits a step
    begins = torch.cat([torch.zeros(1, dtype=torch.int64), shares.sum(0).cumsum(0)[:-1]])
    # The start of each share in the sequence: after its lane's shares of earlier steps.
    place = begins + shares.cumsum(0) - shares
    counts = shares.flatten()
    first = place.flatten().repeat_interleave(counts)
    within = torch.arange(len(sequence)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    return sequence[first + within]
