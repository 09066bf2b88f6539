"""Attention masks and positions for several documents packed into one row of tokens.

A document is a run of equal ids. Shapes: B batch, T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor


def same_document(document: Tensor) -> Tensor:
    """The attention mask (B,1,T,T) bool for document ids `document` (B,T): causal within each document."""
    return (document[:, :, None] == document[:, None]).tril()[:, None]


def restart_positions(document: Tensor) -> Tensor:
    """Each token's position within its document, (B,T) int64, starting at 0."""
    positions = torch.arange(document.shape[1], device=document.device).expand_as(document)
    same = document[:, 1:] == document[:, :-1]
    starts = positions.masked_fill(torch.nn.functional.pad(same, (1, 0)), 0).cummax(1).values
    return positions - starts
