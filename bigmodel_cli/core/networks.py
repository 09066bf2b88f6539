"""What only some models can do, beside answering: asked for by ``isinstance(model, LimitedContext)``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor, nn


@runtime_checkable
class InitialisedFromData(Protocol):
    """A model whose first weights are computed from samples."""

    def init_from_data(self, *inputs: Tensor) -> None:
        """Called once, before training from random weights, with the inputs of prepared train samples (N,...)."""
        ...


@runtime_checkable
class LimitedContext(Protocol):
    """A model of texts that takes so many tokens at once and no more."""

    context: int


@runtime_checkable
class HasInputEmbeddings(Protocol):
    """A model of texts that says which layer embeds its tokens, as those of transformers do."""

    def get_input_embeddings(self) -> nn.Module: ...
