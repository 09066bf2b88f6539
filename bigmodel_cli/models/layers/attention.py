"""Causal self-attention of a decoder, over a whole text or for one more token of it.

Shapes: B batch, T tokens, D width, H heads, G key-value heads, E head dimension, S tokens in the cache.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from bigmodel_cli.models.layers.kv_cache import KVCache
from bigmodel_cli.models.layers.rope import apply_rope
from bigmodel_cli.models.layers.sdpa import attend

Rope = tuple[Tensor, Tensor]
"""Cosines and sines, each (T,1,1,E/2) or (B,T,1,1,E/2)."""


class Attention(nn.Module):
    """Causal self-attention with grouped queries (Ainslie et al. 2023): (B,T,D) -> (B,T,D).

    The rows of `qkv` are ordered by group (its query heads, its key, its value), as in Megatron. Any slice of whole
    groups is a complete attention, so tensor parallelism can place it on one device.
    """

    def __init__(self, width: int, heads: int, groups: int, bias: bool, dropout: float, layer: int) -> None:
        super().__init__()
        self.heads, self.groups, self.dropout, self.layer = heads, groups, dropout, layer
        self.qkv = nn.Linear(width, width + 2 * groups * (width // heads), bias)
        self.proj = nn.Linear(width, width, bias)

    def forward(self, x: Tensor, rope: Rope | None, mask: Tensor | None, cache: KVCache | None) -> Tensor:
        b, t, d = x.shape
        queries = self.heads // self.groups  # per group
        qkv = self.qkv(x).view(b, t, -1, queries + 2, d // self.heads)  # (B,T,G,queries+2,E)
        if cache is not None and t == 1 and not self.training:
            return self.proj(self._next(qkv, rope, mask, cache))  # type: ignore[no-any-return]
        q, k, v = qkv.split((queries, 1, 1), 3)
        if rope is not None:
            q, k = apply_rope(q, *rope), apply_rope(k, *rope)
        # Transposed last: the attention's gradients arrive as (B,T,H,E) and need no copy in the backward pass.
        q, k, v = (part.flatten(2, 3).transpose(1, 2) for part in (q, k, v))  # (B,H,T,E)
        cache_is_empty = cache is None or cache.length == 0
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)
        y = attend(
            q, k, v, mask, dropout_p=self.dropout if self.training else 0.0,
            is_causal=mask is None and cache_is_empty, enable_gqa=self.groups != self.heads,
        )  # fmt: skip
        return self.proj(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _next(self, qkv: Tensor, rope: Rope | None, mask: Tensor | None, cache: KVCache) -> Tensor:
        """The attention (B,1,D) of one new token to all before it; `qkv` is (B,1,G,queries+2,E).

        The queries of a group are the rows of one product with their key and value, which so are not repeated.
        """
        qk, v = qkv[:, 0, :, :-1], qkv[:, 0, :, -1:]
        if rope is not None:
            cos, sin = (table.squeeze(-4) for table in rope)  # the token's axis
            qk = apply_rope(qk, cos, sin)
        k, v = cache.extend(self.layer, qk[:, :, -1:], v)
        return F.scaled_dot_product_attention(qk[:, :, :-1], k, v, mask).flatten(1)[:, None]
