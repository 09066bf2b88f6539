"""Detect the layout of published decoder-only weights and convert them."""

from __future__ import annotations

from torch import Tensor, nn

from bigmodel_cli.models.pretrained.gpt2 import from_gpt2, is_gpt2
from bigmodel_cli.models.pretrained.llama import from_llama, is_llama


def convert_published(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor] | None:
    """Convert weights in GPT-2's or Llama's layout for `model`, a ``GPT``; None if they are in neither.

    Raises:
        InputError: the layout is one of the two, but tensors are missing or unexpected.
    """
    if is_gpt2(state):
        return from_gpt2(state, model.shape.heads)  # type: ignore[union-attr, arg-type]
    return from_llama(state, model.shape.heads) if is_llama(state) else None  # type: ignore[union-attr, arg-type]
