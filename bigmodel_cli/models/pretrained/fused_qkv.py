"""The rows of a joint matrix of queries, keys and values, group by group, and the three apart.

Published weights have all queries, then all keys, then all values. Shapes: E width of a head, H heads, G key-value
heads, which H is a multiple of.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def joined(apart: Sequence[Tensor], head: int) -> Tensor:
    """Queries (H*E,...), keys and values (G*E,...), with E the `head`, in one ((H+2G)*E,...).

    Each group's query heads come first, then its key, then its value.

    Raises:
        RuntimeError: they are not of whole heads and groups.
    """
    groups = len(apart[1]) // head
    parts = [part.reshape(groups, -1, *part.shape[1:]) for part in apart]
    return torch.cat(parts, 1).flatten(0, 1)


def parted(qkv: Tensor, heads: int, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """What ``joined`` put together."""
    share = heads // groups
    apart = qkv.reshape(groups, share + 2, -1, *qkv.shape[1:])
    q, k, v = apart.split((share, 1, 1), 1)
    return q.flatten(0, 2), k.flatten(0, 2), v.flatten(0, 2)
