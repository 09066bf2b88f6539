"""The encoder-decoder of "Attention Is All You Need" (Vaswani et al. 2017), with norms before each part.

Shapes: B batch, S source tokens, T target tokens, D width, V vocabulary.
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
from bigmodel_cli.core.tokens import tokenizer
from bigmodel_cli.core.types import TextSpec
from bigmodel_cli.models.layers.chunked_loss import chunked_cross_entropy

Count = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]


class Attention(nn.Module):
    """Queries of `x` (B,T,D) over keys and values of `memory` (B,S,D): (B,T,D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.memory = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None, causal: bool = False) -> Tensor:
        return self.look(x, *self.keep(memory), mask, causal)

    def keep(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B,H,S,E) of `memory` (B,S,D)."""
        b, s, d = memory.shape
        k, v = self.memory(memory).view(b, s, 2, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        return k, v

    def look(self, x: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool = False) -> Tensor:
        b, t, d = x.shape
        q = self.query(x).view(b, t, self.heads, d // self.heads).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal)
        return self.proj(y.transpose(1, 2).reshape(b, t, d))  # type: ignore[no-any-return]


@dataclass
class Past:
    """What the decoder keeps while it writes N texts: of each layer the keys and values of its tokens and its source.

    `length` tokens are written; `mask` (N,1,1,S) says what of the sources is real.
    """

    own: list[tuple[Tensor, Tensor]]
    source: list[tuple[Tensor, Tensor]]
    mask: Tensor
    length: int = 0

    def chosen(self, rows: Tensor) -> Past:
        """Of the texts those of `rows` (N'), each as often as it is named."""
        pairs = [[(k[rows], v[rows]) for k, v in kept] for kept in (self.own, self.source)]
        return Past(pairs[0], pairs[1], self.mask[rows], self.length)


class Part(nn.Module):
    """A layer of the encoder, or with `cross` of the decoder, which also looks at the source."""

    def __init__(self, width: int, heads: int, inside: int, dropout: float, cross: bool) -> None:
        super().__init__()
        self.norm1, self.own = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width) if cross else None
        self.cross = Attention(width, heads) if cross else None
        self.norm3, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, inside), nn.Linear(inside, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, own_mask: Tensor | None, memory: Tensor | None, mask: Tensor | None) -> Tensor:
        y = self.norm1(x)
        x = x + self.drop(self.own(y, y, own_mask, causal=self.cross is not None))
        if self.norm2 is not None and self.cross is not None:
            x = x + self.drop(self.cross(self.norm2(x), memory, mask))
        return x + self.drop(self.down(F.relu(self.up(self.norm3(x)))))  # type: ignore[no-any-return]

    def step(self, x: Tensor, past: Past, layer: int) -> Tensor:
        """The decoder's layer on one more token (N,1,D), whose key and value `past` then has too."""
        y = self.norm1(x)
        k, v = (torch.cat(both, 2) for both in zip(past.own[layer], self.own.keep(y), strict=True))
        past.own[layer] = k, v
        x = x + self.own.look(y, k, v, None)
        x = x + self.cross.look(self.norm2(x), *past.source[layer], past.mask)  # type: ignore[union-attr, misc]
        return x + self.down(F.relu(self.up(self.norm3(x))))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """source (B,S) and target (B,T) int64 -> logits (B,T,V); or with labels and a loss, each token's loss (B,T)."""

    def __init__(
        self,
        size: int,
        special: dict[str, int],
        context: int,
        layers: int,
        heads: int,
        width: int,
        inside: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.pad, self.start, self.end = special[PAD], special[START], special[END]
        self.context, self.checkpointing = context, False
        self.token = nn.Embedding(size, width)
        self.encoder = nn.ModuleList(Part(width, heads, inside, dropout, False) for _ in range(layers))
        self.decoder = nn.ModuleList(Part(width, heads, inside, dropout, True) for _ in range(layers))
        self.encoder_norm, self.decoder_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.head = nn.Linear(width, size, bias=False)
        self.drop = nn.Dropout(dropout)
        self.register_buffer("position", sinusoids(context + 1, width), persistent=False)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.xavier_uniform_(p)
        nn.init.normal_(self.token.weight, std=width**-0.5)
        self.head.weight = self.token.weight  # section 3.4

    def forward(
        self,
        source: Tensor,
        target: Tensor,
        labels: Tensor | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """`labels` (B,T) hold the fill token where there is nothing to learn: the loss there is 0."""
        x = self.decode(target, *self.encode(source))
        if labels is None or loss is None:
            return self.head(x)  # type: ignore[no-any-return]
        real = labels != self.pad  # the head is the costly part: fill never reaches it
        found = chunked_cross_entropy(self.head, x[real], labels[real], loss)
        return torch.zeros(labels.shape, dtype=found.dtype, device=x.device).masked_scatter(real, found)

    def encode(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """The memory (B,S,D), and which of it is real, (B,1,1,S)."""
        real = source != self.pad
        mask = (real | ~real.any(1, keepdim=True))[:, None, None]
        x = self._embed(source)
        for part in self.encoder:
            x = self._through(part, x, mask, None, None)
        return self.encoder_norm(x), mask

    def decode(self, target: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """The last layer's (B,T,D)."""
        x = self._embed(target)
        for part in self.decoder:
            x = self._through(part, x, None, memory, mask)
        return self.decoder_norm(x)  # type: ignore[no-any-return]

    def begin(self, source: Tensor) -> Past:
        """What :meth:`step` goes on from: nothing is written yet for any of `source` (N,S)."""
        memory, mask = self.encode(source)
        parts = [part.cross.keep(memory) for part in self.decoder]  # type: ignore[union-attr, operator]
        none = [(k[:, :, :0], v[:, :, :0]) for k, v in parts]
        return Past(none, parts, mask)

    def step(self, token: Tensor, past: Past) -> Tensor:
        """Logits (N,V) of what follows `token` (N,), the next of each text; the answers of :meth:`forward`."""
        x = self.token(token[:, None]) * math.sqrt(self.token.embedding_dim)
        x = x + self.get_buffer("position")[past.length]
        for layer, part in enumerate(self.decoder):
            x = part.step(x, past, layer)  # type: ignore[operator]
        past.length += 1
        return self.head(self.decoder_norm(x)[:, 0])  # type: ignore[no-any-return]

    def _through(self, part: nn.Module, *inputs: Tensor | None) -> Tensor:
        if self.checkpointing and self.training:
            return checkpoint(part, *inputs, use_reentrant=False)  # type: ignore[no-any-return]
        return part(*inputs)  # type: ignore[no-any-return]

    def _embed(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) * math.sqrt(self.token.embedding_dim)
        return self.drop(x + self.get_buffer("position")[: tokens.shape[1]])  # type: ignore[no-any-return]


def sinusoids(length: int, width: int) -> Tensor:
    """(length, width): sin and cos of place / 10000^(2i / width) (section 3.5)."""
    angle = torch.arange(length)[:, None] / 10_000 ** (torch.arange(0, width, 2) / width)
    return torch.stack((angle.sin(), angle.cos()), 2).flatten(1)[:, :width]


@models.register(task="translation", head="head", backbone_first="token")
def transformer(
    spec: TextSpec,
    *,
    layers: Count = 3,
    heads: Count = 4,
    width: Count = 256,
    inside: Count | None = None,
    dropout: Share = 0.1,
    checkpointing: bool = False,
) -> nn.Module:
    """Encoder and decoder with shared embeddings: a small "Attention Is All You Need".

    Args:
        inside: width of the layer between the two of a feed-forward part; None: 4 widths.
        checkpointing: keep only what goes between layers, and compute the rest again for the gradient.

    Raises:
        InputError: the heads do not divide the width, or the tokenizer lacks a special token.
    """
    if width % heads or width % 2:
        raise InputError(f"width {width}, heads {heads}", "expected heads that divide an even width")
    known = tokenizer(spec)
    missing = [s for s in (PAD, START, END) if s not in known.special]
    if missing:
        raise InputError(f"a {spec.tokenizer} tokenizer without {missing[0]}", "expected word or bpe for translation")
    model = Transformer(known.size, known.special, spec.context, layers, heads, width, inside or 4 * width, dropout)
    model.checkpointing = checkpointing
    return model
