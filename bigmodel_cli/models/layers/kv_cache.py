"""The key-value cache of a decoder: each token's keys and values are computed once.

Shapes: B batch, T new tokens, G key-value heads, E head dimension, S tokens in the cache.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class KVCache:
    """Keys and values of up to `capacity` tokens per layer.

    `pad` (B,) counts the padding tokens on the left of each prompt in a ragged batch; None if there are none.
    """

    capacity: int
    pad: Tensor | None = None
    length: int = 0
    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append keys and values (B,G,T,E) of `layer`, and return all of its (B,G,S,E) so far."""
        if layer not in self.keys:
            shape = (k.shape[0], k.shape[1], self.capacity, k.shape[3])
            self.keys[layer], self.values[layer] = k.new_empty(shape), v.new_empty(shape)
        end = self.length + k.shape[2]
        self.keys[layer][:, :, self.length : end] = k
        self.values[layer][:, :, self.length : end] = v
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def mask_and_positions(self, t: int, device: torch.device) -> tuple[Tensor | None, Tensor | slice]:
        """The attention mask (B,1,T,S) of `t` new queries, None if plain causal attention will do, and positions."""
        end = self.length + t
        if self.pad is None and (self.length == 0 or t == 1):
            return None, slice(self.length, end)
        query, key = torch.arange(self.length, end, device=device), torch.arange(end, device=device)
        causal = key <= query[:, None]
        if self.pad is None:
            return causal, slice(self.length, end)
        pad = self.pad[:, None]
        # A padding token attends to itself: softmax over a fully masked row is NaN.
        mask = causal & ((key >= pad)[:, None] | (key == query[:, None]))
        return mask[:, None], (query - pad).clamp(min=0)
