"""The encoder-decoder of "Attention Is All You Need" (Vaswani et al. 2017), with pre-norm layers.

Shapes: B batch, S source tokens, T target tokens, D width, H heads, E head dimension, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import models
from bigmodel_cli.core.special_tokens import END, PAD, START
from bigmodel_cli.core.tokenizers.tokens import tokenizer
from bigmodel_cli.core.types import TextSpec
from bigmodel_cli.models.layers.chunked_loss import chunked_cross_entropy, losses_where
from bigmodel_cli.models.layers.dropout import Dropout
from bigmodel_cli.models.layers.sdpa import attend

PositiveInt = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Attention(nn.Module):
    """Attention with queries from `x` (B,T,D) and keys and values from `memory` (B,S,D): (B,T,D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.memory = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None, causal: bool = False) -> Tensor:
        return self.attend(x, *self.project_kv(memory), mask, causal)

    def project_kv(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B,H,S,E) of `memory` (B,S,D)."""
        b, s, d = memory.shape
        k, v = self.memory(memory).view(b, s, 2, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        return k, v

    def attend(self, x: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool = False) -> Tensor:
        b, t, d = x.shape
        q = self.query(x).view(b, t, self.heads, d // self.heads).transpose(1, 2)
        y = attend(q, k, v, mask, is_causal=causal)
        return self.proj(y.transpose(1, 2).reshape(b, t, d))  # type: ignore[no-any-return]


@dataclass
class DecoderCache:
    """Keys and values of N texts being decoded, for each layer: of the `length` tokens so far, and of the source.

    `mask` (N,1,1,S) is False for padding in the source.
    """

    self_kv: list[tuple[Tensor, Tensor]]
    cross_kv: list[tuple[Tensor, Tensor]]
    mask: Tensor
    length: int = 0

    def select(self, rows: Tensor) -> DecoderCache:
        """The cache of the texts at `rows` (N',), which may repeat."""
        pairs = [[(k[rows], v[rows]) for k, v in layers] for layers in (self.self_kv, self.cross_kv)]
        return DecoderCache(pairs[0], pairs[1], self.mask[rows], self.length)


class Layer(nn.Module):
    """An encoder layer, or with `cross` a decoder layer, which also attends to the source."""

    def __init__(self, width: int, heads: int, ffn_dim: int, dropout: float, cross: bool) -> None:
        super().__init__()
        self.norm1, self.own = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width) if cross else None
        self.cross = Attention(width, heads) if cross else None
        self.norm3, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, ffn_dim), nn.Linear(ffn_dim, width)
        self.drop = Dropout(dropout)

    def forward(self, x: Tensor, self_mask: Tensor | None, memory: Tensor | None, mask: Tensor | None) -> Tensor:
        y = self.norm1(x)
        x = x + self.drop(self.own(y, y, self_mask, causal=self.cross is not None))
        if self.norm2 is not None and self.cross is not None:
            x = x + self.drop(self.cross(self.norm2(x), memory, mask))
        return x + self.drop(self.down(F.relu(self.up(self.norm3(x)))))  # type: ignore[no-any-return]

    def step(self, x: Tensor, cache: DecoderCache, layer: int) -> Tensor:
        """Run the decoder layer on one more token (N,1,D), and append its key and value to `cache`."""
        y = self.norm1(x)
        k, v = (torch.cat(pair, 2) for pair in zip(cache.self_kv[layer], self.own.project_kv(y), strict=True))
        cache.self_kv[layer] = k, v
        x = x + self.own.attend(y, k, v, None)
        x = x + self.cross.attend(self.norm2(x), *cache.cross_kv[layer], cache.mask)  # type: ignore[union-attr, misc]
        return x + self.down(F.relu(self.up(self.norm3(x))))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """source (B,S) and target (B,T) int64 -> logits (B,T,V); given labels and a loss, the per-token loss (B,T)."""

    def __init__(
        self,
        size: int,
        special: dict[str, int],
        context: int,
        layers: int,
        heads: int,
        width: int,
        ffn_dim: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.pad, self.start, self.end = special[PAD], special[START], special[END]
        self.context, self.checkpointing = context, False
        self.token = nn.Embedding(size, width)
        self.encoder = nn.ModuleList(Layer(width, heads, ffn_dim, dropout, False) for _ in range(layers))
        self.decoder = nn.ModuleList(Layer(width, heads, ffn_dim, dropout, True) for _ in range(layers))
        self.encoder_norm, self.decoder_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.head = nn.Linear(width, size, bias=False)
        self.drop = Dropout(dropout)
        self.register_buffer("position", sinusoids(context + 1, width), persistent=False)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.xavier_uniform_(p)
        nn.init.normal_(self.token.weight, std=width**-0.5)
        self.head.weight = self.token.weight  # tied (section 3.4)

    def forward(
        self,
        source: Tensor,
        target: Tensor,
        labels: Tensor | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """The loss is 0 where `labels` (B,T) hold the padding token."""
        x = self.decode(target, *self.encode(source))
        if labels is None or loss is None:
            return self.head(x)  # type: ignore[no-any-return]

        def of(states: Tensor, tokens: Tensor) -> Tensor:  # the head is the expensive part
            return chunked_cross_entropy(self.head, states, tokens, loss)

        return losses_where(labels != self.pad, of, x, labels)

    def encode(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """The encoder's output (B,S,D) and its attention mask (B,1,1,S), False for padding."""
        real = source != self.pad
        mask = (real | ~real.any(1, keepdim=True))[:, None, None]
        x = self._embed(source)
        for layer in self.encoder:
            x = self._run_layer(layer, x, mask, None, None)
        return self.encoder_norm(x), mask

    def decode(self, target: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """The decoder's hidden states (B,T,D)."""
        x = self._embed(target)
        for layer in self.decoder:
            x = self._run_layer(layer, x, None, memory, mask)
        return self.decoder_norm(x)  # type: ignore[no-any-return]

    def start_decoding(self, source: Tensor) -> DecoderCache:
        """Encode `source` (N,S) and return the cache for :meth:`step`, with no target tokens yet."""
        memory, mask = self.encode(source)
        cross_kv = [layer.cross.project_kv(memory) for layer in self.decoder]  # type: ignore[union-attr, operator]
        empty = [(k[:, :, :0], v[:, :, :0]) for k, v in cross_kv]
        return DecoderCache(empty, cross_kv, mask)

    def step(self, token: Tensor, cache: DecoderCache) -> Tensor:
        """Feed one `token` (N,) per text and return the next token's logits (N,V), equal to :meth:`forward`'s."""
        x = self.token(token[:, None]) * math.sqrt(self.token.embedding_dim)
        x = x + self.get_buffer("position")[cache.length]
        for i, layer in enumerate(self.decoder):
            x = layer.step(x, cache, i)  # type: ignore[operator]
        cache.length += 1
        return self.head(self.decoder_norm(x)[:, 0])  # type: ignore[no-any-return]

    def _run_layer(self, layer: nn.Module, *inputs: Tensor | None) -> Tensor:
        if self.checkpointing and self.training:
            return checkpoint(layer, *inputs, use_reentrant=False)  # type: ignore[no-any-return]
        return layer(*inputs)  # type: ignore[no-any-return]

    def _embed(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) * math.sqrt(self.token.embedding_dim)
        return self.drop(x + self.get_buffer("position")[: tokens.shape[1]])  # type: ignore[no-any-return]


def sinusoids(length: int, width: int) -> Tensor:
    """(length, width): sin and cos of position / 10000^(2i / width) (section 3.5)."""
    angle = torch.arange(length)[:, None] / 10_000 ** (torch.arange(0, width, 2) / width)
    return torch.stack((angle.sin(), angle.cos()), 2).flatten(1)[:, :width]


@models.register(task="translation", head="head", backbone_first="token")
def transformer(
    spec: TextSpec,
    *,
    layers: PositiveInt = 3,
    heads: PositiveInt = 4,
    width: PositiveInt = 256,
    inside: PositiveInt | None = None,
    dropout: Fraction = 0.1,
    checkpointing: bool = False,
) -> nn.Module:
    """Encoder-decoder with shared embeddings: a small "Attention Is All You Need".

    Args:
        inside: width of the feed-forward layer; None: 4 * width.
        checkpointing: save only the activations between layers, and recompute the rest in the backward pass.

    Raises:
        InputError: the width is odd or not a multiple of the heads, or the tokenizer lacks a special token.
    """
    if width % heads or width % 2:
        raise InputError(f"width {width}, heads {heads}", "expected an even width that is a multiple of the heads")
    known = tokenizer(spec)
    missing = [s for s in (PAD, START, END) if s not in known.special]
    if missing:
        raise InputError(f"a {spec.tokenizer} tokenizer without {missing[0]}", "expected word or bpe for translation")
    model = Transformer(known.size, known.special, spec.context, layers, heads, width, inside or 4 * width, dropout)
    model.checkpointing = checkpointing
    return model
