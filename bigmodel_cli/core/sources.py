"""Sources of samples: the protocol of every split, the protocols of optional capabilities, and a base for wrappers.

Capabilities are tested with ``isinstance(source, LabelledSource)``, never by name. Shapes: N samples, B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.specs import Spec

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Batch = dict[str, "Tensor"]
"""Named tensors that share their first dimension, B. ``index`` (B,) int64 is each sample's index in its split."""


@runtime_checkable
class Source(Protocol):
    """One split of a data set. Batches are gathered by index, never item by item."""

    def __len__(self) -> int: ...

    def gather(self, indices: Tensor) -> Batch:
        """The samples at `indices` ((B,) int64, CPU) as stored, without preprocessing (uint8 images, int64 labels)."""
        ...

    def name(self, index: int) -> str:
        """A readable name of sample `index`: a file, or ``test[17]``."""
        ...


@runtime_checkable
class LabelledSource(Source, Protocol):
    """A split whose labels are known without reading its samples."""

    @property
    def labels(self) -> Tensor:
        """(N,) int64."""
        ...


@runtime_checkable
class GroupedSource(Source, Protocol):
    """A split whose samples have names or groups of their own, by which val is split off."""

    @property
    def groups(self) -> Tensor:
        """(N,) int64: a hash of each sample's group, or else of its name or content."""
        ...


@runtime_checkable
class ContentSource(Source, Protocol):
    """A split that knows which of its samples are the same without reading them."""

    @property
    def contents(self) -> Tensor:
        """(N,) int64: a hash of each sample's content."""
        ...


@runtime_checkable
class ValuedSource(Source, Protocol):
    """A split with several labels or numbers per sample, known without reading its samples; ``label`` in its batches.

    It has no ``labels``, which are one class per sample.
    """

    @property
    def label_values(self) -> Tensor:
        """(N,K) float32, NaN where unknown."""
        ...


@runtime_checkable
class VariableLengthSource(Source, Protocol):
    """A split of samples of different lengths. Batches are padded, so they group samples of similar length."""

    @property
    def lengths(self) -> Tensor:
        """(N,) int64, in tokens."""
        ...


@runtime_checkable
class TranslatedSource(Source, Protocol):
    """A split of translation pairs whose target texts are known as they were read."""

    @property
    def targets(self) -> Sequence[str]:
        """(N,) the target texts, before they were tokenized."""
        ...


@runtime_checkable
class RowSource(Source, Protocol):
    """A split whose samples are rows of a few numbers in memory: many are gathered in about the time of one batch."""

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample in a batch."""
        ...


@runtime_checkable
class OrderedSource(Source, Protocol):
    """A split that is read fast only in its own order, such as shards that are fetched one after another."""

    def order(self, generator: torch.Generator, steps: int) -> Tensor:
        """(N,) int64: the sample order of an epoch of `steps` steps, shuffled as far as fast reading allows."""
        ...


@runtime_checkable
class FileSource(Source, Protocol):
    """A split whose samples are files, each decoded as it is read."""

    def file(self, index: int) -> bytes:
        """The file of sample `index` as it is stored."""
        ...


@runtime_checkable
class HistorySource(Source, Protocol):
    """A split of interactions that knows what every user of the data set did."""

    def histories(self, users: Tensor) -> Tensor:
        """What `users` (B,) did before this split (or in train), oldest first: (B,S) item numbers from 1, then 0."""
        ...

    def trained(self, users: Tensor) -> Tensor:
        """As :meth:`histories`, in the train split alone."""
        ...

    def known(self, users: Tensor) -> Tensor:
        """As :meth:`histories`, over the whole data set: what a recommendation made today starts from."""
        ...


class SourceWrapper:
    """A source that wraps another one; a subclass overrides what differs.

    It has labels, label values, contents, targets, histories, sizes, lengths and an order exactly if `source` has them.
    They are copied to the instance, because ``isinstance`` does not see what ``__getattr__`` would find (Python 3.12)
    or sees too much of it (3.11).
    """

    keeps_lengths: ClassVar[bool] = True
    """Whether samples have the same lengths as in `source`."""
    keeps_order: ClassVar[bool] = True
    """Whether samples have the same indices as in `source`, so that its order is fast here too."""

    def __init__(self, source: Source) -> None:
        self.source = source
        if isinstance(source, LabelledSource):
            self.labels = self.select(source.labels)
        if isinstance(source, ContentSource):
            self.contents = self.select(source.contents)
        if isinstance(source, TranslatedSource):
            import torch

            texts = source.targets
            self.targets = [texts[i] for i in self.select(torch.arange(len(texts))).tolist()]
        if isinstance(source, ValuedSource):
            self.label_values = self.select(source.label_values)
        if isinstance(source, HistorySource):  # it is asked by user, not by sample
            self.histories, self.trained, self.known = source.histories, source.trained, source.known
        if isinstance(source, RowSource):
            self.sample_bytes = source.sample_bytes
        if self.keeps_lengths and isinstance(source, VariableLengthSource):
            self.lengths = self.select(source.lengths)
        if self.keeps_order and isinstance(source, OrderedSource):
            self.order = source.order

    def select(self, values: Tensor) -> Tensor:
        """Map `values`, one per sample of `source`, to one per sample of this wrapper."""
        return values

    def __len__(self) -> int:
        return len(self.source)

    def gather(self, indices: Tensor) -> Batch:
        return self.source.gather(indices)

    def name(self, index: int) -> str:
        return self.source.name(index)


@dataclass(frozen=True)
class DataBundle:
    """The splits of a data set, each loaded on first use, and their spec.

    `load` maps split names to loaders: ``train``, ``val`` if the data has its own (else
    the engine splits it off from train), ``test`` if there is one.
    Training never calls the test loader.
    """

    spec: Spec
    load: Mapping[str, Callable[[], Source]]
    fingerprint: str = ""
    notes: Sequence[str] = field(default_factory=tuple)
    problem: InputError | None = None
    """Why it cannot be trained on, though it may be evaluated: no train split, or other classes in val."""
