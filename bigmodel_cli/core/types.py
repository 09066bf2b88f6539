"""The few types that tasks, models, data and the engine share.

Shapes: B batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from bigmodel_cli.core.specs import SPECS as SPECS
from bigmodel_cli.core.specs import ImageSpec as ImageSpec
from bigmodel_cli.core.specs import Spec as Spec
from bigmodel_cli.core.specs import TextSpec as TextSpec

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

Batch = dict[str, "Tensor"]
"""Named tensors that share their first dimension, B. ``index`` (B,) int64 is each sample's place in its split."""


class Source(Protocol):
    """One split of a data set. Batches are gathered by index, never item by item."""

    def __len__(self) -> int: ...

    def gather(self, indices: Tensor) -> Batch:
        """The samples at `indices` ((B,) int64, CPU), as raw as they are stored (uint8 images, int64 labels)."""
        ...

    def name(self, index: int) -> str:
        """What a person calls sample `index`: a file, or ``test[17]``."""
        ...


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


@dataclass(frozen=True)
class SampleKey:
    """What the randomness of augmentation may depend on: (seed, epoch, index), and nothing else.

    `indices` is (B,) int64 on the device of the batch.
    """

    seed: int
    epoch: int
    indices: Tensor


@dataclass(frozen=True)
class LossSum:
    """A loss as a *sum* over `count` units (images, tokens, ratings). Only the engine divides, globally."""

    total: Tensor
    count: int | Tensor


@dataclass(frozen=True)
class Frozen:
    """What does not train: tensor names (parameters and buffers), and the modules held in eval mode."""

    tensors: frozenset[str] = frozenset()
    modules: tuple[nn.Module, ...] = ()


@dataclass(frozen=True)
class Start:
    """What a fine-tuning method is given.

    `model` has the weights it starts from (or random ones where a run is resumed: what is needed of
    the start must then be in the model's own tensors). `head` names its last layer. `open` brings
    another checkpoint to life, as a teacher.
    """

    model: nn.Module
    head: str
    open: Callable[[str], Any]


Solve = Callable[["Tensor", "Tensor", "Tensor", "Tensor", "Tensor"], "tuple[Tensor, Tensor, str]"]
"""(train features (N,D), labels (N,), their weights (N,), val features, val labels) -> weight (K,D), bias (K,), and
how it was chosen."""


@dataclass(frozen=True)
class Adapted:
    """What a fine-tuning method decided; what it does not name trains as usual."""

    frozen: Frozen = Frozen()
    stages: tuple[tuple[float, Frozen], ...] = ()
    """(share of the epochs, what is frozen beside `frozen` from then on), in order of the share."""
    rates: Mapping[str, float] = field(default_factory=dict)
    """Factor of the learning rate by parameter name; 1 where it is not named."""
    objective: Callable[[Any], Any] | None = None
    """Task -> Task, with something added to the loss."""
    solve: Solve | None = None
    """Finds the head at once instead of step by step, on features that the frozen backbone gives."""
    once: Callable[[nn.Module, Batch], Batch] | None = None
    """(model as it starts, prepared batch) -> tensors (B,...) that lie beside each sample from then on."""

    def stage(self, share: float) -> Frozen | None:
        """What is frozen beside `frozen` once `share` of the epochs is done; None for a method without stages."""
        reached = [held for begins, held in self.stages if begins <= share]
        return reached[-1] if reached else None


class Task(Protocol):
    """What a batch means. The engine calls these and knows no task by name."""

    name: str
    spec: Any
    unit: str
    """What is counted: "images", "tokens", "ratings"."""
    unit_axis: int | None
    """The dimension of the last input along which units lie; None: a sample is one."""
    inputs: tuple[str, ...]
    """The tensors of a prepared batch that go into the model, in order."""
    report: str
    """Which of the registered reports ``eval`` makes of the outputs."""
    metrics: Sequence[str]
    """The registered metrics that ``eval`` reports of the outputs."""
    best: tuple[str, str]
    """The validation metric that chooses ``best.pt``, and "max" or "min"."""

    def fit_spec(self, train: Source) -> Task:
        """The task with preprocessing statistics measured on the train split."""
        ...

    def prepare(self, batch: Batch, key: SampleKey | None = None) -> Batch:
        """Raw batch on the device to model-ready batch: resize, normalise; augment where `key` is given."""
        ...

    def count(self, batch: Batch) -> int:
        """How many units the loss of `batch` sums over, known before the forward pass."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> LossSum: ...

    def for_data(self, data: Any) -> Task:
        """The task on data of another spec: what is named (classes) is matched by name, never by position."""
        ...

    def adopt(self, trained: Any, data: Any) -> tuple[Any, list[str]]:
        """The spec to fine-tune with, from the trained one and the new data's, and a line for each change."""
        ...

    def outputs(self, model: nn.Module, batch: Batch) -> Batch:
        """What the model says of each sample, first dimension B: what reports are made of."""
        ...

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Sums over the batch, ``loss`` and ``count`` among them; the engine adds them over batches and ranks."""
        ...

    def summarise(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Sums over the split to metrics: ``loss``, ``accuracy``, ..."""
        ...

    def readings(self, path: Path) -> Iterator[tuple[str, Batch]]:
        """The samples in a file, each with its name and as a raw batch of one: what ``predict`` answers.

        Raises:
            InputError: the file cannot be read, or the task has no answers (only text that goes on).
        """
        ...

    def answers(self, model: nn.Module, batch: Batch, top: int) -> list[list[tuple[str, float]]]:
        """For each sample up to `top` answers with their probabilities, likeliest first."""
        ...

    def preprocessing(self) -> dict[str, Any]:
        """How another program prepares an input: plain values that go along with an export."""
        ...

    def example(self, batch_size: int) -> tuple[Tensor, ...]:
        """Model inputs of the right shape and type (values are of no meaning), for tables, FLOPs and export."""
        ...


def finite(value: Any) -> Any:
    """`value` with non-finite floats as None: JSON has no NaN."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    return [finite(v) for v in value] if isinstance(value, (list, tuple)) else value
