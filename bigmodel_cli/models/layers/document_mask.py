"""Documents that lie side by side in a row of tokens, each read as if it stood alone.

A document is a run of equal numbers. Shapes: B batch, T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor


def same_document(document: Tensor) -> Tensor:
    """What each token of `document` (B,T) may see, (B,1,T,T) bool: itself, and what is before it in its document."""
    return (document[:, :, None] == document[:, None]).tril()[:, None]


def restart_positions(document: Tensor) -> Tensor:
    """Each token's place in its own document, (B,T) int64, from 0 on."""
    place = torch.arange(document.shape[1], device=document.device).expand_as(document)
    same = document[:, 1:] == document[:, :-1]
    begins = place.masked_fill(torch.nn.functional.pad(same, (1, 0)), 0).cummax(1).values
    return place - begins
