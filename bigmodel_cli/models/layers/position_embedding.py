"""Resample a vision transformer's position embeddings for images of another size.

Shapes: T tokens (P prefix tokens, such as the class token, then a grid of patches), D width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

MOST_PREFIX_TOKENS = 5  # a class token and four registers (Darcet et al. 2023)


def resample_positions(embedding: Tensor, tokens: int) -> Tensor | None:
    """(1,T,D) or (T,D) -> the same with `tokens` tokens, its grid resized (bicubic, antialiased); prefix tokens stay.

    Both grids are square (Dosovitskiy et al. 2020, section 3.2). None: no number of prefix tokens makes them so.
    """
    old = embedding.shape[-2]
    for prefix in range(MOST_PREFIX_TOKENS + 1):
        sides = [math.isqrt(max(count - prefix, 0)) for count in (old, tokens)]
        if min(sides) > 0 and [side**2 + prefix for side in sides] == [old, tokens]:
            break
    else:
        return None
    kept, grid = embedding[..., :prefix, :], embedding[..., prefix:, :]
    planes = grid.reshape(1, sides[0], sides[0], -1).permute(0, 3, 1, 2).float()
    planes = F.interpolate(planes, (sides[1], sides[1]), mode="bicubic", antialias=True)
    resized = planes.permute(0, 2, 3, 1).reshape(*grid.shape[:-2], sides[1] ** 2, -1).to(embedding.dtype)
    return torch.cat([kept, resized], dim=-2)
