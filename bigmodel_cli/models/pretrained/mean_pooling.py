"""Encoders that classify by the mean of a text's token states, as sentence encoders are used.

Below a new head that is all that trains, the mean tells more than the state of one token: published encoders fit
``[CLS]`` to their own pretraining, or not at all. Shapes: B batch, T tokens, D features, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.models.pretrained.auto_classes import MASKED, class_for, head_attribute
from bigmodel_cli.models.pretrained.wrapped import Classifier, real_tokens


class MeanPooled(Classifier):
    """tokens (B,T), fill at the end -> logits (B,K), linear in the mean of the encoder's last states (B,D)."""

    def __init__(self, inner: Any, context: int, pad: int) -> None:
        super().__init__(inner, context, pad)
        self.head = head_attribute(type(inner).__name__, "text_classification")
        _keep_encoder(inner, self.head)

    def forward(self, tokens: Tensor) -> Tensor:
        mask = real_tokens(tokens, self.pad)
        states = self.inner.base_model(input_ids=tokens, attention_mask=mask)[0]
        if states.shape[1] != tokens.shape[1]:
            what = f"{type(self.inner).__name__} has {states.shape[1]} states of {tokens.shape[1]} tokens"
            raise InputError(what, "expected one each for their mean", "--set model.pooling=own")
        real = mask[..., None].to(states.dtype)
        pooled = (states * real).sum(1) / real.sum(1)
        return getattr(self.inner, self.head)(pooled)  # type: ignore[no-any-return]


def _keep_encoder(inner: Any, head: str) -> None:
    """Remove what `inner` has between its encoder and its head, which becomes one linear layer."""
    encoder = inner.base_model
    for name, child in list(inner.named_children()):
        if child is not encoder:
            delattr(inner, name)
    if isinstance(getattr(encoder, "pooler", None), nn.Module):
        encoder.pooler = None
    setattr(inner, head, nn.Linear(inner.config.hidden_size, inner.config.num_labels))


def frozen_options(member: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that suit the class `member` where nothing of its published weights trains below a new head."""
    config = json.loads(options["config"])
    encoder = class_for(str(config.get("model_type", "")), MASKED) is not None and not config.get("is_decoder", False)
    new_head = member not in (config.get("architectures") or ())
    return {"pooling": "mean"} if encoder and new_head and not config.get("is_encoder_decoder") else {}
