"""Convolutions over words (Kim 2014, "Convolutional Neural Networks for Sentence Classification").

Shapes: B batch, T tokens, D embedding dimension, F filters, K classes.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from bigmodel_cli.core.registry import models
from bigmodel_cli.core.special_tokens import PAD
from bigmodel_cli.core.tokenizers.tokens import tokenizer
from bigmodel_cli.core.types import TextSpec
from bigmodel_cli.models.layers.dropout import Dropout

PositiveInt = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class TextCnn(nn.Module):
    """tokens (B,T) int64 -> logits (B,K). Padding has no effect, so a text's logits do not depend on its batch."""

    def __init__(self, size: int, pad: int, width: int, filters: int, widths: tuple[int, ...], dropout: float, k: int):
        super().__init__()
        self.pad, self.widths = pad, widths
        self.token = nn.Embedding(size, width)
        self.drop_words = Dropout(dropout / 2)
        self.convolutions = nn.ModuleList(nn.Conv1d(width, filters, w) for w in widths)
        self.drop = Dropout(dropout)
        self.head = nn.Linear(filters * len(widths), k)
        nn.init.uniform_(self.token.weight, -0.25, 0.25)  # as in the paper: the variance of pretrained vectors

    def forward(self, tokens: Tensor) -> Tensor:
        real = (tokens != self.pad)[..., None]
        x = (self.drop_words(self.token(tokens)) * real).transpose(1, 2)
        # ReLU leaves nothing below zero, so padding positions, set to zero, never win the max over time.
        features = []
        for conv, w in zip(self.convolutions, self.widths, strict=True):
            padded = F.pad(x, ((w - 1) // 2, w // 2))
            features.append((conv(padded).relu() * real.transpose(1, 2)).amax(2))
        return self.head(self.drop(torch.cat(features, 1)))  # type: ignore[no-any-return]


@models.register("text-cnn", task="text_classification", head="head", backbone_first="token")
def text_cnn(
    spec: TextSpec,
    *,
    width: PositiveInt = 300,
    filters: PositiveInt = 100,
    windows: tuple[PositiveInt, ...] = (3, 4, 5),
    dropout: Fraction = 0.5,
) -> nn.Module:
    """Convolutions over 3, 4 and 5 words, max-pooled over the text (Kim 2014, CNN-rand)."""
    known = tokenizer(spec)
    pad = known.special.get(PAD, -1)
    return TextCnn(known.size, pad, width, filters, windows, dropout, max(spec.num_classes, 1))
