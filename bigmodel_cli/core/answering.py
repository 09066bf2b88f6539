"""Protocols of tasks whose models give K numbers per sample. Shapes: N samples, B batch, K outputs."""

from __future__ import annotations

from typing import Protocol, Self, runtime_checkable

from bigmodel_cli.core.sources import Batch, Source
from bigmodel_cli.core.tasks import Labelled, Task


@runtime_checkable
class NamesAnswer(Protocol):
    """A task that says what the outputs of its models mean."""

    @property
    def answers(self) -> str:
        """The registered kind of answer: "classes", "labels", "numbers", "items", "rating"."""
        ...


@runtime_checkable
class Answers(NamesAnswer, Labelled, Protocol):
    """A task whose model gives K numbers per sample, and what they mean: "classes", "labels" or "numbers"."""


@runtime_checkable
class FitsToVal(Task, Protocol):
    """A task with several labels or numbers per sample: what its answers take is found on the labels of train, or
    chosen on val, and kept in its spec. Its metrics are those of a whole split, not sums over samples."""

    def fit_labels(self, train: Source) -> Self:
        """The task with what is found on the labels of the train split, such as their mean, if it has none yet.

        Raises:
            InputError: the data has one class per sample, or labels that the task cannot take.
        """
        ...

    def fit_to_val(self, outputs: Batch) -> Self:
        """The task with what is chosen on the outputs of the validation split, such as thresholds, in its spec."""
        ...

    def score(self, outputs: Batch) -> dict[str, float]:
        """The metrics of the outputs of a whole split, ``loss`` among them."""
        ...


@runtime_checkable
class Balances(Task, Protocol):
    """A task that can weight its own loss for labels that are rarely or mostly true (``train.balance = loss``)."""

    def balanced(self, train: Source) -> Self: ...
