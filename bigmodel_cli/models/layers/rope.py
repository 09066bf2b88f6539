"""Rotary position embeddings (Su et al. 2021).

Shapes: B batch, T tokens, G key-value heads, E head dimension, C context window.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rope_tables(context: int, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """(C,E/2) cosines and sines; the slowest angle turns once in about 2 pi `base` tokens."""
    half = head_dim // 2
    angle = torch.arange(context)[:, None] / base ** (torch.arange(half) / half)
    return angle.cos(), angle.sin()


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate (B,T,G,...,E), pairing its halves, with cos and sin (T,1,1,E/2) or (B,T,1,1,E/2)."""
    a, b = x.chunk(2, -1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat((torch.addcmul(a * cos, b, sin, value=-1), torch.addcmul(b * cos, a, sin)), -1)
