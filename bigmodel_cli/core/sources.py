"""Where samples come from: what every split of a data set has, what only some have, and the base of wrappers.

What only some have is asked for by ``isinstance(source, LabelledSource)``, never by name. Shapes: N samples, B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from bigmodel_cli.core.specs import Spec

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Batch = dict[str, "Tensor"]
"""Named tensors that share their first dimension, B. ``index`` (B,) int64 is each sample's place in its split."""


@runtime_checkable
class Source(Protocol):
    """One split of a data set. Batches are gathered by index, never item by item."""

    def __len__(self) -> int: ...

    def gather(self, indices: Tensor) -> Batch:
        """The samples at `indices` ((B,) int64, CPU), as raw as they are stored (uint8 images, int64 labels)."""
        ...

    def name(self, index: int) -> str:
        """What a person calls sample `index`: a file, or ``test[17]``."""
        ...


@runtime_checkable
class LabelledSource(Source, Protocol):
    """A split that knows the class of each sample without reading it."""

    @property
    def labels(self) -> Tensor:
        """(N,) int64."""
        ...


@runtime_checkable
class VariableLengthSource(Source, Protocol):
    """A split whose samples are not of one length: a batch pads them, so batches are made of similar ones."""

    @property
    def lengths(self) -> Tensor:
        """(N,) int64, in tokens."""
        ...


@runtime_checkable
class OrderedSource(Source, Protocol):
    """A split that is read fast only in an order of its own, such as shards that are fetched one after the other."""

    def order(self, generator: torch.Generator, steps: int) -> Tensor:
        """(N,) int64: the samples of an epoch of `steps` steps, shuffled as far as reading allows."""
        ...


class SourceWrapper:
    """A source made of another one, sample for sample: a subclass says what differs.

    It has labels, lengths and an order exactly where `source` has them. They are copied to the instance here, because
    ``isinstance`` does not see what ``__getattr__`` would find (Python 3.12) or sees too much of it (3.11).
    """

    keeps_lengths: ClassVar[bool] = True
    """Whether a sample is as long as it is in `source`."""
    keeps_order: ClassVar[bool] = True
    """Whether samples are read from `source` at the same index, so that its order is the fast one here too."""

    def __init__(self, source: Source) -> None:
        self.source = source
        if isinstance(source, LabelledSource):
            self.labels = self.select(source.labels)
        if self.keeps_lengths and isinstance(source, VariableLengthSource):
            self.lengths = self.select(source.lengths)
        if self.keeps_order and isinstance(source, OrderedSource):
            self.order = source.order

    def select(self, values: Tensor) -> Tensor:
        """What of `values`, one for each sample of `source`, belongs to the samples here."""
        return values

    def __len__(self) -> int:
        return len(self.source)

    def gather(self, indices: Tensor) -> Batch:
        return self.source.gather(indices)

    def name(self, index: int) -> str:
        return self.source.name(index)


@dataclass(frozen=True)
class DataBundle:
    """The splits of a data set, each loaded when first asked for, and what a model must know of them.

    `load` maps split names to loaders: ``train`` always, ``val`` where the data has its
    own (else the engine carves it from train by seed), ``test`` where there is one.
    Training never calls the test loader.
    """

    spec: Spec
    load: Mapping[str, Callable[[], Source]]
    fingerprint: str = ""
    notes: Sequence[str] = field(default_factory=tuple)
