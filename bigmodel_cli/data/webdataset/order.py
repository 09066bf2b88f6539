"""The order of an epoch over shards: shuffled, and yet read nearly one shard after the other.

Shards are shuffled, then the samples within windows of them: what a shuffle buffer does, but
as a plain permutation, a function of the generator alone. So resuming, and splitting over
processes, need nothing of their own.
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

    The sequence is cut into LANES pieces of consecutive shards, and each step takes an equal share of
    each, piece by piece. A process that takes the r-th part of R of every step, R a divisor of LANES, so
    reads its own pieces alone (but for rounding, where a step is no multiple of LANES), whatever R is.

    Args:
        counts: samples in each shard.
        shards: the order in which they are read.
        window: samples that are shuffled together.
        steps: optimizer steps in the epoch, nearly equal ones as ``tensor_split`` cuts them.
    """
    starts = torch.tensor([0, *counts]).cumsum(0)
    sequence = torch.cat([torch.arange(int(starts[s]), int(starts[s + 1])) for s in shards])
    parts = [_shuffled(part, generator) for part in sequence.split(window)]
    return _in_lanes(torch.cat(parts), steps)


def following(counts: Sequence[int], shards: Sequence[int]) -> dict[int, int]:
    """Which shard comes after each, where `shards` is their order; none at the end of a piece."""
    begins = torch.tensor([0, *(counts[s] for s in shards)]).cumsum(0)[:-1]
    piece = (begins * LANES // sum(counts)).tolist()
    pairs = zip(shards, shards[1:], piece, piece[1:], strict=False)
    return {shard: after for shard, after, here, there in pairs if here == there}


def _shuffled(part: Tensor, generator: torch.Generator) -> Tensor:
    return part[torch.randperm(len(part), generator=generator)]


def _in_lanes(sequence: Tensor, steps: int) -> Tensor:
    """`sequence` rearranged, so that the k-th LANES-th of every step comes from the k-th piece of it."""
    whole, more = divmod(len(sequence), steps)
    sizes = torch.full((steps,), whole)
    sizes[:more] += 1
    lane = torch.arange(LANES)
    shares = sizes[:, None] // LANES + (lane < sizes[:, None] % LANES)  # (steps, LANES), as tensor_split cuts a step
    begins = torch.cat([torch.zeros(1, dtype=torch.int64), shares.sum(0).cumsum(0)[:-1]])
    # Where in the sequence each share of each step begins: after its lane's shares of earlier steps.
    place = begins + shares.cumsum(0) - shares
    counts = shares.flatten()
    first = place.flatten().repeat_interleave(counts)
    within = torch.arange(len(sequence)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    return sequence[first + within]
