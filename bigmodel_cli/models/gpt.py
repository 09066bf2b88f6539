"""Decoder-only transformers (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners").

Shapes: B batch, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import models
from bigmodel_cli.core.tokenizers.tokens import tokenizer
from bigmodel_cli.core.types import TextSpec
from bigmodel_cli.models.layers.attention import Attention
from bigmodel_cli.models.layers.chunked_loss import chunked_cross_entropy
from bigmodel_cli.models.layers.document_mask import restart_positions, same_document
from bigmodel_cli.models.layers.dropout import Dropout
from bigmodel_cli.models.layers.kv_cache import KVCache
from bigmodel_cli.models.layers.rope import rope_tables
from bigmodel_cli.models.layers.tensor_parallel_plan import tensor_plan
from bigmodel_cli.models.pretrained.layouts import convert_published

PositiveInt = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Position = Literal["learned", "rope"]
Norm = Literal["layer", "rms"]
LANGUAGE_MODEL: dict[str, Any] = {
    "task": "language_modeling",
    "head": "head",
    "backbone_first": "token",
    "translate": convert_published,
    "tensor_plan": tensor_plan,
}
Checkpointing = Annotated[
    bool, Field(description="save only the activations between blocks; recompute the rest in the backward pass")
]
MLPKind = Literal["gelu", "gelu-tanh", "swiglu"]


class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019)."""


class MLP(nn.Module):
    """The feed-forward layer of a block, with GELU or SwiGLU (Shazeer 2020): (B,T,D) -> (B,T,D)."""

    def __init__(self, width: int, ffn_dim: int, kind: MLPKind, bias: bool) -> None:
        super().__init__()
        self.approximate = "tanh" if kind == "gelu-tanh" else "none"
        self.gate = nn.Linear(width, ffn_dim, bias) if kind == "swiglu" else None
        self.up = nn.Linear(width, ffn_dim, bias)
        self.down = nn.Linear(ffn_dim, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is not None:
            return self.down(F.silu(self.gate(x)) * self.up(x))  # type: ignore[no-any-return]
        return self.down(F.gelu(self.up(x), approximate=self.approximate))  # type: ignore[no-any-return]


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): pre-norm, as in GPT-2."""

    def __init__(self, layer: int, shape: Shape) -> None:
        super().__init__()
        self.norm1 = shape.make_norm()
        dropped = shape.dropout if shape.attention_dropout is None else shape.attention_dropout
        self.attention = Attention(shape.width, shape.heads, shape.groups, shape.bias, dropped, layer)
        self.norm2 = shape.make_norm()
        self.mixer = MLP(shape.width, shape.ffn_dim, shape.mlp, shape.bias)  # the name is part of checkpoints
        self.drop = Dropout(shape.dropout) if shape.dropout else nn.Identity()

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor] | None, mask: Tensor | None, cache: KVCache | None
    ) -> Tensor:
        x = x + self.drop(self.attention(self.norm1(x), rope, mask, cache))
        return x + self.drop(self.mixer(self.norm2(x)))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Shape:
    """The dimensions and kinds of layers, the same in every block of a model."""

    width: int
    heads: int
    groups: int
    ffn_dim: int
    norm: Norm
    eps: float
    mlp: MLPKind
    bias: bool
    dropout: float
    attention_dropout: float | None = None
    """Of the attention's weights; None: as elsewhere."""

    def make_norm(self) -> nn.Module:
        kind = RMSNorm if self.norm == "rms" else functools.partial(nn.LayerNorm, bias=self.bias)
        return kind(self.width, eps=self.eps)


class GPT(nn.Module):
    """tokens (B,T) int64 -> logits (B,T,V); given targets and a loss, the per-token loss (B,T)."""

    def __init__(
        self, vocabulary: int, context: int, layers: int, shape: Shape, position: Position, tied: bool, rope_base: float
    ) -> None:
        super().__init__()
        self.context, self.shape, self.rope_base, self.checkpointing = context, shape, rope_base, False
        self.token = nn.Embedding(vocabulary, shape.width)
        self.position = nn.Embedding(context, shape.width) if position == "learned" else None
        self.drop = Dropout(shape.dropout) if shape.dropout else nn.Identity()
        self.blocks = nn.ModuleList(Block(i, shape) for i in range(layers))
        self.norm = shape.make_norm()
        self.head = nn.Linear(shape.width, vocabulary, bias=False)
        if position == "rope":
            cos, sin = rope_tables(context, shape.width // shape.heads, rope_base)
            self.register_buffer("cos", cos, persistent=False)
            self.register_buffer("sin", sin, persistent=False)
        self._initialise(layers)
        if tied:
            self.head.weight = self.token.weight

    def _initialise(self, layers: int) -> None:
        """N(0, 0.02), scaled by 1/sqrt(2 layers) in layers that write to the residual stream (GPT-2, section 2.3)."""
        for name, module in self.named_modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                residual = name.endswith(("proj", "down"))
                nn.init.normal_(module.weight, std=0.02 / (2 * layers) ** 0.5 if residual else 0.02)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        cache: KVCache | None = None,
        document: Tensor | None = None,
    ) -> Tensor:
        """`targets` (B,T) are -100 for tokens to ignore, whose loss is 0.

        With document ids `document` (B,T), documents packed into one row do not attend to each other.
        """
        x = self.hidden(tokens, cache, document)
        if targets is None or loss is None:
            return self.head(x)  # type: ignore[no-any-return]
        return chunked_cross_entropy(self.head, x.flatten(0, 1), targets.flatten(), loss).view(targets.shape)

    def new_cache(self, pad: Tensor | None = None) -> KVCache:
        """An empty cache for one context window; `pad` (B,) counts the padding tokens on the left of each prompt."""
        return KVCache(self.context, pad)

    def hidden(self, tokens: Tensor, cache: KVCache | None, document: Tensor | None = None) -> Tensor:
        """The final hidden states (B,T,D), after the last norm."""
        start, t = (cache.length if cache else 0), tokens.shape[1]
        x, mask, rope = self.token(tokens), None, None
        positions: Tensor | slice = slice(start, start + t)
        if cache is not None:
            mask, positions = cache.mask_and_positions(t, tokens.device)
        elif document is not None:
            mask, positions = same_document(document), restart_positions(document)
        if self.position is not None:
            x = x + (self.position.weight[positions] if isinstance(positions, slice) else self.position(positions))
        else:
            cos, sin = self.get_buffer("cos")[positions], self.get_buffer("sin")[positions]
            rope = cos[..., None, None, :], sin[..., None, None, :]
        x = self.drop(x)
        for block in self.blocks:
            if self.checkpointing and self.training:
                x = checkpoint(block, x, rope, mask, cache, use_reentrant=False)
            else:
                x = block(x, rope, mask, cache)
        if cache is not None:
            cache.length += t
        return self.norm(x)  # type: ignore[no-any-return]


@models.register(**LANGUAGE_MODEL)
def gpt(
    spec: TextSpec,
    *,
    layers: PositiveInt = 4,
    heads: PositiveInt = 4,
    kv_heads: PositiveInt | None = None,
    width: PositiveInt = 128,
    inside: PositiveInt | None = None,
    position: Position = "learned",
    rope_base: Annotated[float, Field(gt=1, allow_inf_nan=False)] = 10_000.0,
    norm: Norm = "layer",
    norm_eps: Annotated[float, Field(gt=0, lt=1)] = 1e-5,
    mlp: MLPKind = "gelu",
    bias: bool = False,
    tied: bool = True,
    dropout: Fraction = 0.0,
    checkpointing: Checkpointing = False,
) -> nn.Module:
    """A decoder-only transformer of any size; the defaults are nanoGPT's CPU setting.

    Args:
        kv_heads: number of key-value heads, each shared by a group of query heads; None: one per query head.
        inside: width of the feed-forward layer; None: 4 D, or 8/3 D for SwiGLU, which has the same parameter count.
        position: a learned vector per position, or rotary embeddings.
        mlp: gelu is exact, as in nanoGPT; gelu-tanh is the approximation, as in GPT-2.
        tied: share the weight of the head and the embedding.

    Raises:
        InputError: the width does not divide into the heads, or the heads into groups.
    """
    groups = kv_heads or heads
    if width % heads or heads % groups or (position == "rope" and (width // heads) % 2):
        what = f"width {width}, heads {heads}, kv_heads {groups}"
        raise InputError(what, "expected heads that divide the width (evenly for rope), kv_heads that divide the heads")
    # 8/3 D is rounded up to a multiple of 32, which vector units handle best.
    ffn_dim = inside or (-(-8 * width // 3 // 32) * 32 if mlp == "swiglu" else 4 * width)
    shape = Shape(width, heads, groups, ffn_dim, norm, norm_eps, mlp, bias, dropout)
    model = GPT(tokenizer(spec).size, spec.context, layers, shape, position, tied, rope_base)
    model.checkpointing = checkpointing
    return model


@models.register("gpt-nano", **LANGUAGE_MODEL)
def gpt_nano(
    spec: TextSpec, *, position: Position = "learned", dropout: Fraction = 0.0, checkpointing: Checkpointing = False
) -> nn.Module:
    """4 layers, 128 wide: nanoGPT's CPU setting (Karpathy 2022)."""
    return gpt(spec, position=position, dropout=dropout, checkpointing=checkpointing)  # type: ignore[no-any-return]


@models.register("gpt-micro", **LANGUAGE_MODEL)
def gpt_micro(
    spec: TextSpec, *, position: Position = "rope", dropout: Fraction = 0.0, checkpointing: Checkpointing = False
) -> nn.Module:
    """6 layers, width 192, with rotary embeddings, RMSNorm and SwiGLU."""
    options = {"layers": 6, "heads": 6, "width": 192, "norm": "rms", "mlp": "swiglu"}
    return gpt(spec, **options, position=position, dropout=dropout, checkpointing=checkpointing)  # type: ignore[no-any-return, arg-type]


@models.register("gpt-mini", **LANGUAGE_MODEL)
def gpt_mini(
    spec: TextSpec, *, position: Position = "rope", dropout: Fraction = 0.0, checkpointing: Checkpointing = False
) -> nn.Module:
    """6 layers, width 384, 2 key-value heads, rotary embeddings, RMSNorm, SwiGLU."""
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
    dropout: Fraction = 0.0,
    checkpointing: Checkpointing = False,
) -> nn.Module:
    """GPT-2 at this size (Radford et al. 2019)."""
    layers, heads, width = size
    options = {"layers": layers, "heads": heads, "width": width, "bias": True, "mlp": "gelu-tanh"}
    return gpt(spec, **options, dropout=dropout, checkpointing=checkpointing)  # type: ignore[no-any-return, arg-type]
