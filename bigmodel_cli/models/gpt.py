"""Decoder-only transformers (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners").

Shapes: B batch, T tokens, D width, H heads, G key-value heads, V vocabulary, S tokens in the cache.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import models
from bigmodel_cli.core.tokens import tokenizer
from bigmodel_cli.core.types import TextSpec
from bigmodel_cli.models.layers.chunked_loss import chunked_cross_entropy
from bigmodel_cli.models.layers.document_mask import restart_positions, same_document
from bigmodel_cli.models.layers.kv_cache import Cache
from bigmodel_cli.models.layers.tensor_parallel_plan import tensor_plan
from bigmodel_cli.models.pretrained.layouts import published

Count = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Position = Literal["learned", "rope"]
Norm = Literal["layer", "rms"]
LANGUAGE_MODEL: dict[str, Any] = {
    "task": "language_modeling",
    "head": "head",
    "backbone_first": "token",
    "translate": published,
    "tensor_plan": tensor_plan,
}
Checkpointing = Annotated[
    bool, Field(description="keep only what goes between blocks, compute the rest again for the gradient")
]
Mlp = Literal["gelu", "gelu-tanh", "swiglu"]


class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019)."""


class Attention(nn.Module):
    """Causal self-attention: (B,T,D) -> (B,T,D); `groups` key-value heads serve all queries (Ainslie et al. 2023).

    The rows of `qkv` lie group by group (its query heads, its key, its value), as in Megatron: any run of whole
    groups is an attention of its own, which a device can have to itself.
    """

    def __init__(self, width: int, heads: int, groups: int, bias: bool, dropout: float, layer: int) -> None:
        super().__init__()
        self.heads, self.groups, self.dropout, self.layer = heads, groups, dropout, layer
        self.qkv = nn.Linear(width, width + 2 * groups * (width // heads), bias)
        self.proj = nn.Linear(width, width, bias)

    def forward(
        self, x: Tensor, turn: tuple[Tensor, Tensor] | None, mask: Tensor | None, cache: Cache | None
    ) -> Tensor:
        b, t, d = x.shape
        share = self.heads // self.groups
        mixed = self.qkv(x).view(b, t, -1, share + 2, d // self.heads)  # (B,T,G,share+2,E)
        q, k, v = mixed.split((share, 1, 1), 3)
        if turn is not None:
            q, k = rotate(q, *turn), rotate(k, *turn)
        # Moved last: the attention's gradients come in the order (B,T,H,E), and so need no copy on their way back.
        q, k, v = (part.flatten(2, 3).transpose(1, 2) for part in (q, k, v))  # (B,H,T,E)
        fresh = cache is None or cache.length == 0
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)
        y = F.scaled_dot_product_attention(
            q, k, v, mask, self.dropout if self.training else 0.0,
            is_causal=mask is None and fresh, enable_gqa=self.groups != self.heads,
        )  # fmt: skip
        return self.proj(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021), halves paired: (B,T,G,...,E) with cos and sin (T,1,1,E/2) or (B,T,1,1,E/2)."""
    a, b = x.chunk(2, -1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat((torch.addcmul(a * cos, b, sin, value=-1), torch.addcmul(b * cos, a, sin)), -1)


class Mixer(nn.Module):
    """The wide layer of a block: (B,T,D) -> (B,T,D); SwiGLU (Shazeer 2020) multiplies by a gate."""

    def __init__(self, width: int, inside: int, kind: Mlp, bias: bool) -> None:
        super().__init__()
        self.approximate = "tanh" if kind == "gelu-tanh" else "none"
        self.gate = nn.Linear(width, inside, bias) if kind == "swiglu" else None
        self.up = nn.Linear(width, inside, bias)
        self.down = nn.Linear(inside, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is not None:
            return self.down(F.silu(self.gate(x)) * self.up(x))  # type: ignore[no-any-return]
        return self.down(F.gelu(self.up(x), approximate=self.approximate))  # type: ignore[no-any-return]


class Block(nn.Module):
    """x + attention(norm(x)), then x + mixer(norm(x)): norms before, as in GPT-2."""

    def __init__(self, layer: int, shape: Shape) -> None:
        super().__init__()
        self.norm1 = shape.make_norm()
        self.attention = Attention(shape.width, shape.heads, shape.groups, shape.bias, shape.dropout, layer)
        self.norm2 = shape.make_norm()
        self.mixer = Mixer(shape.width, shape.inside, shape.mlp, shape.bias)
        self.drop = nn.Dropout(shape.dropout) if shape.dropout else nn.Identity()

    def forward(
        self, x: Tensor, turn: tuple[Tensor, Tensor] | None, mask: Tensor | None, cache: Cache | None
    ) -> Tensor:
        x = x + self.drop(self.attention(self.norm1(x), turn, mask, cache))
        return x + self.drop(self.mixer(self.norm2(x)))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Shape:
    """What every block of a model shares."""

    width: int
    heads: int
    groups: int
    inside: int
    norm: Norm
    eps: float
    mlp: Mlp
    bias: bool
    dropout: float

    def make_norm(self) -> nn.Module:
        kind = RMSNorm if self.norm == "rms" else functools.partial(nn.LayerNorm, bias=self.bias)
        return kind(self.width, eps=self.eps)


class GPT(nn.Module):
    """tokens (B,T) int64 -> logits (B,T,V); or with targets and a loss, each token's loss (B,T)."""

    def __init__(
        self, vocabulary: int, context: int, layers: int, shape: Shape, position: Position, tied: bool, base: float
    ) -> None:
        super().__init__()
        self.context, self.shape, self.base, self.checkpointing = context, shape, base, False
        self.token = nn.Embedding(vocabulary, shape.width)
        self.position = nn.Embedding(context, shape.width) if position == "learned" else None
        self.drop = nn.Dropout(shape.dropout) if shape.dropout else nn.Identity()
        self.blocks = nn.ModuleList(Block(i, shape) for i in range(layers))
        self.norm = shape.make_norm()
        self.head = nn.Linear(shape.width, vocabulary, bias=False)
        if position == "rope":
            half = shape.width // shape.heads // 2
            angle = torch.arange(context)[:, None] / base ** (torch.arange(half) / half)
            self.register_buffer("cos", angle.cos(), persistent=False)
            self.register_buffer("sin", angle.sin(), persistent=False)
        self._initialise(layers)
        if tied:
            self.head.weight = self.token.weight

    def _initialise(self, layers: int) -> None:
        """N(0, 0.02); what writes into the residual stream is scaled by 1/sqrt(2 layers) (GPT-2, section 2.3)."""
        for name, module in self.named_modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                last = name.endswith(("proj", "down"))
                nn.init.normal_(module.weight, std=0.02 / (2 * layers) ** 0.5 if last else 0.02)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        cache: Cache | None = None,
        document: Tensor | None = None,
    ) -> Tensor:
        """With `targets` (B,T), -100 where nothing is to be learned, the result is `loss` of each token, 0 there.

        Where `document` (B,T) numbers the documents that lie side by side, each is read as if it stood alone.
        """
        x = self.hidden(tokens, cache, document)
        if targets is None or loss is None:
            return self.head(x)  # type: ignore[no-any-return]
        return chunked_cross_entropy(self.head, x.flatten(0, 1), targets.flatten(), loss).view(targets.shape)

    def new_cache(self, pad: Tensor | None = None) -> Cache:
        """An empty cache for one context; `pad` (B,) counts the fill tokens on the left of each prompt."""
        return Cache(self.context, pad)

    def hidden(self, tokens: Tensor, cache: Cache | None, document: Tensor | None = None) -> Tensor:
        """The last layer's (B,T,D), normed."""
        start, t = (cache.length if cache else 0), tokens.shape[1]
        x, mask, turn = self.token(tokens), None, None
        place: Tensor | slice = slice(start, start + t)
        if cache is not None:
            mask, place = cache.masks(t, tokens.device)
        elif document is not None:
            mask, place = same_document(document), restart_positions(document)
        if self.position is not None:
            x = x + (self.position.weight[place] if isinstance(place, slice) else self.position(place))
        else:
            cos, sin = self.get_buffer("cos")[place], self.get_buffer("sin")[place]
            turn = cos[..., None, None, :], sin[..., None, None, :]
        x = self.drop(x)
        for block in self.blocks:
            if self.checkpointing and self.training:
                x = checkpoint(block, x, turn, mask, cache, use_reentrant=False)
            else:
                x = block(x, turn, mask, cache)
        if cache is not None:
            cache.length += t
        return self.norm(x)  # type: ignore[no-any-return]


@models.register(**LANGUAGE_MODEL)
def gpt(
    spec: TextSpec,
    *,
    layers: Count = 4,
    heads: Count = 4,
    kv_heads: Count | None = None,
    width: Count = 128,
    inside: Count | None = None,
    position: Position = "learned",
    rope_base: Annotated[float, Field(gt=1, allow_inf_nan=False)] = 10_000.0,
    norm: Norm = "layer",
    norm_eps: Annotated[float, Field(gt=0, lt=1)] = 1e-5,
    mlp: Mlp = "gelu",
    bias: bool = False,
    tied: bool = True,
    dropout: Share = 0.0,
    checkpointing: Checkpointing = False,
) -> nn.Module:
    """A decoder-only transformer of any size; the defaults are nanoGPT's CPU setting.

    Args:
        kv_heads: keys and values are shared by groups of heads; None: each head has its own.
        inside: width of the layer between; None: 4 D, and 8/3 D for SwiGLU, which then has as many weights.
        position: a learned vector a place, or rotary angles, the slowest of which turns once in 2 pi `rope_base`.
        mlp: gelu is exact, as in nanoGPT; gelu-tanh its approximation, as in GPT-2.
        tied: the head's weight is the embedding's.

    Raises:
        InputError: the width cannot be cut into the heads, or the heads into groups.
    """
    groups = kv_heads or heads
    if width % heads or heads % groups or (position == "rope" and (width // heads) % 2):
        what = f"width {width}, heads {heads}, kv_heads {groups}"
        raise InputError(what, "expected heads that divide the width (evenly for rope), kv_heads that divide the heads")
    # 8/3 D is rounded up to what vector units like.
    inside = inside or (-(-8 * width // 3 // 32) * 32 if mlp == "swiglu" else 4 * width)
    shape = Shape(width, heads, groups, inside, norm, norm_eps, mlp, bias, dropout)
    model = GPT(tokenizer(spec).size, spec.context, layers, shape, position, tied, rope_base)
    model.checkpointing = checkpointing
    return model


@models.register("gpt-nano", **LANGUAGE_MODEL)
def gpt_nano(
    spec: TextSpec, *, position: Position = "learned", dropout: Share = 0.0, checkpointing: Checkpointing = False
) -> nn.Module:
    """4 layers, 128 wide: nanoGPT's CPU setting (Karpathy 2022)."""
    return gpt(spec, position=position, dropout=dropout, checkpointing=checkpointing)  # type: ignore[no-any-return]


@models.register("gpt-micro", **LANGUAGE_MODEL)
def gpt_micro(
    spec: TextSpec, *, position: Position = "rope", dropout: Share = 0.0, checkpointing: Checkpointing = False
) -> nn.Module:
    """6 layers, 192 wide, rotary positions, RMSNorm and SwiGLU."""
    options = {"layers": 6, "heads": 6, "width": 192, "norm": "rms", "mlp": "swiglu"}
    return gpt(spec, **options, position=position, dropout=dropout, checkpointing=checkpointing)  # type: ignore[no-any-return, arg-type]


@models.register("gpt-mini", **LANGUAGE_MODEL)
def gpt_mini(
    spec: TextSpec, *, position: Position = "rope", dropout: Share = 0.0, checkpointing: Checkpointing = False
) -> nn.Module:
    """6 layers, 384 wide, 2 key-value heads, rotary positions, RMSNorm and SwiGLU."""
    options = {"layers": 6, "heads": 6, "kv_heads": 2, "width": 384, "norm": "rms", "mlp": "swiglu"}
    return gpt(spec, **options, position=position, dropout=dropout, checkpointing=checkpointing)  # type: ignore[no-any-return, arg-type]


@models.register("gpt2-124m", **LANGUAGE_MODEL, size=(12, 12, 768))
@models.register("gpt2-350m", **LANGUAGE_MODEL, size=(24, 16, 1024))
@models.register("gpt2-774m", **LANGUAGE_MODEL, size=(36, 20, 1280))
@models.register("gpt2-1558m", **LANGUAGE_MODEL, size=(48, 25, 1600))
def _gpt2(
    spec: TextSpec,
    size: tuple[int, int, int],
    *,
    dropout: Share = 0.0,
    checkpointing: Checkpointing = False,
) -> nn.Module:
    """GPT-2 at this size (Radford et al. 2019)."""
    layers, heads, width = size
    options = {"layers": layers, "heads": heads, "width": width, "bias": True, "mlp": "gelu-tanh"}
    return gpt(spec, **options, dropout=dropout, checkpointing=checkpointing)  # type: ignore[no-any-return, arg-type]
