"""What a batch means: what every task does, what only some do, and the base of wrappers.

The engine knows no task by name. What only some do is asked for by ``isinstance(task, Classifies)``.
Shapes: B batch, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

from bigmodel_cli.core.sources import Batch, Source

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from bigmodel_cli.core.chat import Message

Forward = Callable[..., Any]
"""A model, or what stands in for it: called as the model is, it gives what the model gives."""
Predictions = list[tuple[str, float]]
"""What a model predicts for one sample, with the probabilities, likeliest first."""


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


@runtime_checkable
class Task(Protocol):
    """What every task does."""

    @property
    def name(self) -> str: ...

    @property
    def spec(self) -> Any:
        """The :class:`~bigmodel_cli.core.specs.Spec` of the model's inputs: one kind for each task."""
        ...

    @property
    def unit(self) -> str:
        """What is counted: "images", "tokens", "ratings"."""
        ...

    @property
    def unit_axis(self) -> int | None:
        """The dimension of the last input along which units lie; None: each sample is one unit."""
        ...

    @property
    def inputs(self) -> tuple[str, ...]:
        """The tensors of a prepared batch that go into the model, in order."""
        ...

    @property
    def report(self) -> str:
        """Which of the registered reports ``eval`` makes of the outputs."""
        ...

    @property
    def metrics(self) -> Sequence[str]:
        """The registered metrics that ``eval`` reports."""
        ...

    @property
    def best(self) -> tuple[str, str]:
        """The validation metric that chooses ``best.pt``, and "max" or "min"."""
        ...

    def fit_spec(self, train: Source) -> Task:
        """The task with preprocessing statistics measured on the train split."""
        ...

    def for_data(self, data: Any) -> Task:
        """The task on data of another spec: what is named (classes) is matched by name, never by position."""
        ...

    def adopt(self, trained: Any, data: Any) -> tuple[Any, list[str]]:
        """The spec to fine-tune with, from the trained one and the new data's, and a line for each change."""
        ...

    def prepare(self, batch: Batch, key: SampleKey | None = None) -> Batch:
        """Raw batch on the device to model-ready batch: resize, normalise; augment where `key` is given."""
        ...

    def count(self, batch: Batch) -> int:
        """How many units the loss of `batch` sums over, known before the forward pass."""
        ...

    def loss(self, model: Forward, batch: Batch) -> LossSum: ...

    def outputs(self, model: Forward, batch: Batch) -> Batch:
        """What the model gives for each sample, first dimension B: what reports are made of."""
        ...

    def evaluate(self, model: Forward, batch: Batch) -> dict[str, Tensor]:
        """Sums over the batch, ``loss`` and ``count`` among them; the engine adds them over batches and ranks."""
        ...

    def summarise(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Sums over the split to metrics: ``loss``, ``accuracy``, ..."""
        ...

    def preprocessing(self) -> dict[str, Any]:
        """How another program prepares an input: plain values that go along with an export."""
        ...

    def example(self, batch_size: int) -> tuple[Tensor, ...]:
        """Model inputs of the right shape and type (values are of no meaning), for tables, FLOPs and export."""
        ...


@runtime_checkable
class Classifies(Task, Protocol):
    """A task with one class a sample: prepared batches have ``label`` (B,), outputs have ``logits`` (B,K)."""

    @property
    def label_map(self) -> tuple[int, ...] | None:
        """The model's label for each label of the data, -1 where the model has no such class; None: they agree."""
        ...

    @property
    def loss_per_sample(self) -> Callable[[Tensor, Tensor], Tensor]:
        """(logits (B,K), labels (B,)) -> losses (B,)."""
        ...

    @property
    def augment(self) -> Callable[..., Tensor]:
        """What ``prepare`` does to samples in training."""
        ...

    def with_(self, **changes: Any) -> Self:
        """The task with another ``loss_per_sample`` or ``augment``."""
        ...


@runtime_checkable
class Predicts(Task, Protocol):
    """A task that has an answer to each sample of a file."""

    def read_file(self, path: Path) -> Iterator[tuple[str, Batch]]:
        """The samples in a file, each with its name and as a raw batch of one.

        Raises:
            InputError: the file cannot be read.
        """
        ...

    def predict(self, model: Forward, batch: Batch, top: int) -> list[Predictions]:
        """For each sample of the prepared `batch` up to `top` answers."""
        ...


@runtime_checkable
class EncodesTexts(Predicts, Protocol):
    """A task that has an answer to a text."""

    def encode_texts(self, texts: Sequence[str]) -> Batch:
        """A raw batch of `texts`, without what the model is to predict."""
        ...


@runtime_checkable
class Generates(Task, Protocol):
    """A task whose models continue a text."""

    def encode_prompt(self, text: str | Sequence[Message]) -> list[int]:
        """The tokens of a text to continue; of a conversation, those after which the assistant's answer comes.

        Raises:
            InputError: a character is not in the vocabulary, or the model was not trained on conversations.
        """
        ...

    def generate(
        self, model: nn.Module, prompts: Sequence[str | Sequence[Message]], **sampling: Any
    ) -> Iterator[list[str | None]]:
        """What comes after each prompt, a piece a step; None once its text has ended.

        Raises:
            InputError: see :meth:`encode_prompt`.
        """
        ...


@runtime_checkable
class Mixes(Protocol):
    """An augmentation that may also mix each image of a batch with another one."""

    @property
    def mixing(self) -> Callable[[Tensor, SampleKey], tuple[Tensor, Tensor, Tensor]] | None:
        """Images (B,C,H,W) -> mixed ones, each one's partner (B,) int64, its own share (B,); None: it mixes none."""
        ...


class TaskWrapper:
    """A task made of another one: a subclass says what differs, all else is the wrapped task's own.

    It satisfies a protocol exactly where `task`, with what the subclass defines, does: the rest is copied to the
    instance here, because ``isinstance`` does not see what ``__getattr__`` would find (Python 3.12). Tasks are
    immutable, so a copy stays true. ``fit_spec``, ``for_data`` and ``with_`` give the inner task anew: they come first.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        own = dir(type(self))
        for name in dir(task):
            if not name.startswith("_") and name not in (*own, "task"):
                setattr(self, name, getattr(task, name))

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...
