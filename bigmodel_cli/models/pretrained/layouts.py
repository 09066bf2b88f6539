"""Published weights of decoder-only models: which layout a file is in."""

from __future__ import annotations

from torch import Tensor, nn

from bigmodel_cli.models.pretrained.gpt2 import from_gpt2, is_gpt2
from bigmodel_cli.models.pretrained.llama import from_llama, is_llama


def published(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor] | None:
    """The state dict of `model`, a gpt, of weights in GPT-2's or Llama's layout; None where they are in neither.

    Raises:
        InputError: they are in one of them, but not whole.
    """
    if is_gpt2(state):
        return from_gpt2(state, model.shape.heads)  # type: ignore[union-attr, arg-type]
    return from_llama(state, model.shape.heads) if is_llama(state) else None  # type: ignore[union-attr, arg-type]
