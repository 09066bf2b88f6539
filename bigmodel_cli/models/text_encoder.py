"""Bidirectional transformer encoders (Devlin et al. 2018). Shapes: B batch, T tokens, D width, K classes."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import models
from bigmodel_cli.core.special_tokens import PAD
from bigmodel_cli.core.tokenizers.tokens import tokenizer
from bigmodel_cli.core.types import TextSpec
from bigmodel_cli.models.layers.dropout import Dropout
from bigmodel_cli.models.layers.sdpa import attend

PositiveInt = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Layer(nn.Module):
    """Pre-norm attention over all tokens but padding, then an MLP of width 4 D: (B,T,D) -> (B,T,D)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drop = Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        y = attend(q, k, v, mask).transpose(1, 2).reshape(b, t, d)
        x = x + self.drop(self.proj(y))
        return x + self.drop(self.down(F.gelu(self.up(self.norm2(x)))))  # type: ignore[no-any-return]


class TextEncoder(nn.Module):
    """tokens (B,T) int64 -> logits (B,K), from the mean over all tokens but padding."""

    def __init__(self, size: int, pad: int, context: int, layers: int, heads: int, width: int, dropout: float, k: int):
        super().__init__()
        self.pad, self.context = pad, context
        self.token, self.position = nn.Embedding(size, width), nn.Embedding(context, width)
        self.layers = nn.ModuleList(Layer(width, heads, dropout) for _ in range(layers))
        self.norm, self.drop = nn.LayerNorm(width), Dropout(dropout)
        self.head = nn.Linear(width, k)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        real = tokens != self.pad
        # A text of nothing but padding attends to its padding: softmax over a fully masked row is NaN.
        mask = (real | ~real.any(1, keepdim=True))[:, None, None]
        x = self.drop(self.token(tokens) + self.position.weight[: tokens.shape[1]])
        for layer in self.layers:
            x = layer(x, mask)
        weight = real[..., None].to(x.dtype)
        mean = (self.norm(x) * weight).sum(1) / weight.sum(1).clamp(min=1)
        return self.head(self.drop(mean))  # type: ignore[no-any-return]


@models.register("text-encoder", task="text_classification", head="head", backbone_first="token")
def text_encoder(
    spec: TextSpec,
    *,
    layers: PositiveInt = 2,
    heads: PositiveInt = 2,
    width: PositiveInt = 128,
    dropout: Fraction = 0.1,
) -> nn.Module:
    """A bidirectional transformer the size of BERT-tiny: 2 layers, width 128 (Turc et al. 2019)."""
    if width % heads:
        raise InputError(f"width {width}, heads {heads}", "expected a width that is a multiple of the heads")
    known = tokenizer(spec)
    pad = known.special.get(PAD, -1)
    return TextEncoder(known.size, pad, spec.context, layers, heads, width, dropout, max(spec.num_classes, 1))
