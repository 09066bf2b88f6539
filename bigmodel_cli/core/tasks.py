"""Tasks: the protocol of every task, the protocols of optional capabilities, and a base for wrappers.

A task defines how batches are prepared and scored. The engine knows no task by name: it tests for capabilities with
``isinstance(task, Classifies)``.
Shapes: B batch, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, runtime_checkable

from bigmodel_cli.core.readers.text_samples import AS_FOUND, Reading
from bigmodel_cli.core.sources import Batch, Source

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from bigmodel_cli.core.messages import Message

Forward = Callable[..., Any]
"""A model, or a function with the same inputs and outputs."""
Predictions = list[tuple[str, float]]
"""The predictions for one sample with their probabilities, most likely first."""
CUT = "cut"
"""In a raw batch of texts: (B,) bool, whether the text is longer than what is kept of it."""
EMPTY = "empty"
"""In a raw batch of texts: (B,) bool, whether there is nothing in the text but blanks."""


@dataclass(frozen=True)
class SampleKey:
    """The only values that random augmentation may depend on: (seed, epoch, index).

    `indices` is (B,) int64 on the device of the batch.
    """

    seed: int
    epoch: int
    indices: Tensor


@dataclass(frozen=True)
class LossSum:
    """A loss as a *sum* over `count` units (images, tokens, ratings). Only the engine divides, by the global count."""

    total: Tensor
    count: int | Tensor


@runtime_checkable
class Task(Protocol):
    """The interface of every task."""

    @property
    def name(self) -> str: ...

    @property
    def spec(self) -> Any:
        """The :class:`~bigmodel_cli.core.specs.Spec` of the model's inputs; each task has one kind."""
        ...

    @property
    def unit(self) -> str:
        """The unit of `count`: "images", "tokens", "ratings"."""
        ...

    @property
    def unit_axis(self) -> int | None:
        """The dimension of the last input that counts units; None: each sample is one unit."""
        ...

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the prepared tensors that are passed to the model, in order."""
        ...

    @property
    def report(self) -> str:
        """The registered report that ``eval`` makes from the outputs."""
        ...

    @property
    def metrics(self) -> Sequence[str]:
        """The registered metrics that ``eval`` reports."""
        ...

    @property
    def best(self) -> tuple[str, str]:
        """The validation metric that selects ``best.pt``, and "max" or "min"."""
        ...

    def fit_spec(self, train: Source) -> Task:
        """The task with preprocessing statistics measured on the train split."""
        ...

    def for_data(self, data: Any) -> Task:
        """The task for data with another spec; classes are matched by name, never by position."""
        ...

    def adopt(self, trained: Any, data: Any) -> tuple[Any, list[str]]:
        """Merge the trained spec and the new data's into the spec for fine-tuning; also returns a line per change."""
        ...

    def prepare(self, batch: Batch, key: SampleKey | None = None) -> Batch:
        """Turn a raw batch on the device into model inputs: resize and normalise; with `key`, also augment."""
        ...

    def count(self, batch: Batch) -> int:
        """The number of units that the loss of `batch` sums over, known before the forward pass."""
        ...

    def loss(self, model: Forward, batch: Batch) -> LossSum: ...

    def outputs(self, model: Forward, batch: Batch) -> Batch:
        """The model's outputs for each sample, first dimension B, for reports."""
        ...

    def evaluate(self, model: Forward, batch: Batch) -> dict[str, Tensor]:
        """Sums over the batch, including ``loss`` and ``count``; the engine adds them over batches and ranks."""
        ...

    def summarise(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Turn sums over the split into metrics: ``loss``, ``accuracy``, ..."""
        ...

    def preprocessing(self) -> dict[str, Any]:
        """How another program must prepare an input: plain values, stored with an export."""
        ...

    def example(self, batch_size: int) -> tuple[Tensor, ...]:
        """Model inputs of the right shape and type with arbitrary values, for tables, FLOPs and export."""
        ...


class Labelled(Task, Protocol):
    """A task with a label, or K of them, for each sample: prepared batches have ``label``, (B,) or (B,K)."""

    @property
    def loss_per_sample(self) -> Callable[[Tensor, Tensor], Tensor]:
        """(logits (B,K), labels as prepared) -> losses (B,)."""
        ...

    @property
    def augment(self) -> Callable[..., Tensor]:
        """The augmentation that ``prepare`` applies in training."""
        ...

    def with_(self, **changes: Any) -> Self:
        """The task with another ``loss_per_sample`` or ``augment``."""
        ...


@runtime_checkable
class Classifies(Labelled, Protocol):
    """A task with one class per sample: prepared batches have ``label`` (B,), outputs have ``logits`` (B,K)."""

    @property
    def label_map(self) -> tuple[int, ...] | None:
        """The model's label for each label of the data, -1 for a class unknown to the model; None: they agree."""
        ...


@runtime_checkable
class Predicts(Task, Protocol):
    """A task that can predict the samples of a file."""

    def read_file(self, path: Path, how: Reading = AS_FOUND) -> Iterator[tuple[str, Batch]]:
        """The samples in a file: the name of each, and a raw batch of one.

        `how` says which columns of a table are read, and in which encoding.

        Raises:
            InputError: the file cannot be read.
        """
        ...

    def predict(self, model: Forward, batch: Batch, top: int) -> list[Predictions]:
        """Up to `top` predictions for each sample of the prepared `batch`."""
        ...


@runtime_checkable
class EncodesTexts(Predicts, Protocol):
    """A task that can predict texts."""

    def encode_texts(self, texts: Sequence[str]) -> Batch:
        """A raw batch of `texts`, without labels or targets, with :data:`CUT` and :data:`EMPTY`."""
        ...


@runtime_checkable
class Generates(Task, Protocol):
    """A task whose models continue a text."""

    def encode_prompt(self, text: str | Sequence[Message]) -> list[int]:
        """The tokens of a prompt: of a text to continue, or of a conversation that the assistant answers.

        Raises:
            InputError: a character is not in the vocabulary, or the model was not trained on conversations.
        """
        ...

    def generate(
        self, model: nn.Module, prompts: Sequence[str | Sequence[Message]], **sampling: Any
    ) -> Iterator[list[str | None]]:
        """Continue each prompt: yields one piece of text per prompt and step, None once its text has ended.

        Raises:
            InputError: see :meth:`encode_prompt`.
        """
        ...


@runtime_checkable
class Mixes(Protocol):
    """An augmentation that can mix each image of a batch with another one."""

    @property
    def mixing(self) -> Callable[[Tensor, SampleKey], tuple[Tensor, Tensor, Tensor]] | None:
        """Images (B,C,H,W) -> mixed images, partner indices (B,) int64, own weights (B,); None: no mixing."""
        ...


@runtime_checkable
class ChoosesSide(Protocol):
    """An augmentation that can give images of another size than the model's input in evaluation."""

    @property
    def side(self) -> int | None:
        """Height and width of its images, in pixels; None: those of the model's input."""
        ...


class TaskWrapper:
    """A task that wraps another one; a subclass overrides what differs.

    It satisfies the protocols that `task` and the subclass together satisfy. The attributes of `task` are copied to the
    instance, because ``isinstance`` does not see what ``__getattr__`` would find (Python 3.12). Tasks are immutable,
    so the copies stay valid. ``fit_spec``, ``for_data`` and ``with_`` return the inner task, so call them first.
    """

    hides: ClassVar[frozenset[str]] = frozenset()
    """Attributes of `task` that the wrapper does not have, so that it does not satisfy their protocols."""

    def __init__(self, task: Task) -> None:
        self.task = task
        own = dir(type(self))
        for name in dir(task):
            if not name.startswith("_") and name not in (*own, *self.hides, "task"):
                setattr(self, name, getattr(task, name))

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...
