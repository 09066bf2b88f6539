"""Fuse query, key and value weights into one matrix, and split it again.

Our matrix is ordered group by group; published weights have all queries, then all keys, then all values.
Shapes: E head dimension, H heads, G key-value heads (G divides H).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def fuse_qkv(qkv: Sequence[Tensor], head_dim: int) -> Tensor:
    """Fuse queries (H*E,...), keys and values (G*E,...) into one matrix ((H+2G)*E,...), where E is `head_dim`.

    The rows of each group are its query heads, then its key, then its value.

    Raises:
        RuntimeError: the rows do not divide into heads and groups.
    """
    groups = len(qkv[1]) // head_dim
    grouped = [part.reshape(groups, -1, *part.shape[1:]) for part in qkv]
    return torch.cat(grouped, 1).flatten(0, 1)


def split_qkv(qkv: Tensor, heads: int, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """The inverse of :func:`fuse_qkv`: queries, keys and values."""
    queries = heads // groups  # per group
    grouped = qkv.reshape(groups, queries + 2, -1, *qkv.shape[1:])
    q, k, v = grouped.split((queries, 1, 1), 1)
    return q.flatten(0, 2), k.flatten(0, 2), v.flatten(0, 2)
