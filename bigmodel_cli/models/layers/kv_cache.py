"""Keys and values of the tokens that a decoder has read, so that each is computed once.

Shapes: B batch, T new tokens, G key-value heads, E width of a head, S tokens in the cache.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Cache:
    """Room for `capacity` tokens in each layer.

    `pad` (B,) counts the fill tokens on the left of each prompt of a ragged batch; None where there are none.
    """

    capacity: int
    pad: Tensor | None = None
    length: int = 0
    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B,G,T,E) keys and values of `layer`; all (B,G,S,E) of them up to now."""
        if layer not in self.keys:
            shape = (k.shape[0], k.shape[1], self.capacity, k.shape[3])
            self.keys[layer], self.values[layer] = k.new_empty(shape), v.new_empty(shape)
        end = self.length + k.shape[2]
        self.keys[layer][:, :, self.length : end] = k
        self.values[layer][:, :, self.length : end] = v
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def masks(self, t: int, device: torch.device) -> tuple[Tensor | None, Tensor | slice]:
        """What each of `t` queries may see, (B,1,T,S) or None for all before it, and each one's position."""
        end = self.length + t
        if self.pad is None and (self.length == 0 or t == 1):
            return None, slice(self.length, end)
        query, key = torch.arange(self.length, end, device=device), torch.arange(end, device=device)
        causal = key <= query[:, None]
        if self.pad is None:
            return causal, slice(self.length, end)
        pad = self.pad[:, None]
        # A fill token sees itself: a row of nothing would be NaN.
        seen = causal & ((key >= pad)[:, None] | (key == query[:, None]))
        return seen[:, None], (query - pad).clamp(min=0)
