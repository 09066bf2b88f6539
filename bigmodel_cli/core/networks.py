"""Optional capabilities of models, tested with ``isinstance(model, LimitedContext)``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor, nn


@runtime_checkable
class InitialisedFromData(Protocol):
    """A model whose initial weights are computed from samples."""

    def init_from_data(self, *inputs: Tensor) -> None:
        """Initialise the weights from prepared training inputs (N,...). Called once, before training from scratch."""
        ...


@runtime_checkable
class FixedBackbone(Protocol):
    """A model whose layers below the head are fixed functions: nothing of them is trained or changes in training."""

    fixed_backbone: bool


@runtime_checkable
class LimitedContext(Protocol):
    """A text model that accepts at most `context` tokens at once."""

    context: int


@runtime_checkable
class HasInputEmbeddings(Protocol):
    """A text model that exposes its token embedding layer, as the models of transformers do."""

    def get_input_embeddings(self) -> nn.Module: ...
