"""A base for tasks on the inputs and models of a classification task, with other labels than one class a sample.

Shapes: B batch, K outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from bigmodel_cli.core.device_constant import device_constant
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import tasks
from bigmodel_cli.core.sources import ValuedSource
from bigmodel_cli.core.tasks import Classifies, Forward, Predictions, TaskWrapper
from bigmodel_cli.core.types import Batch, LossSum, SampleKey, Source
from bigmodel_cli.tasks.answers import answer_of, outputs_described
from bigmodel_cli.tasks.labelled import logits_of

OVER = ("image_classification", "text_classification")
"""The tasks whose inputs and models such a task has."""


def inputs_of(spec: Any, loss: Callable[..., Tensor], augment: Callable[..., Tensor]) -> Classifies:
    """The task of OVER for this kind of spec; it reads, augments and prepares the inputs."""
    for name in OVER:
        entry = tasks.get(name)
        if entry.meta["spec_type"].kind == spec.kind:
            return entry(spec, loss, augment)  # type: ignore[no-any-return]
    raise InputError(f"labels for {spec.kind} data", f"expected data for {' or '.join(OVER)}".replace("_", " "))


class Relabelled(TaskWrapper):
    """`task` prepares the inputs; a subclass says what the labels (B,K) mean.

    `columns` are the places of the model's outputs among those of the data, -1 for one that the data lacks; None if
    they agree.
    """

    hides: ClassVar[frozenset[str]] = frozenset({"label_map"})
    name: ClassVar[str]
    answers: ClassVar[str]
    task: Classifies

    def __init__(self, task: Classifies, columns: tuple[int, ...] | None = None) -> None:
        super().__init__(task)
        self.columns = columns

    def with_(self, **changes: Any) -> Self:
        return type(self)(self.task.with_(**changes), self.columns)

    def with_spec(self, spec: Any) -> Self:
        """The task for another spec of the same inputs."""
        return type(self)(self.task.with_(spec=spec), self.columns)

    def fit_spec(self, train: Source) -> Self:
        fitted: Any = self.task.fit_spec(train)
        return type(self)(fitted, self.columns)

    def for_data(self, data: Any) -> Self:
        """The task for data with its own outputs, matched by *name*."""
        mine, theirs = self.spec.classes, data.classes
        if mine != theirs and not set(mine) & set(theirs):
            ours, others = (", ".join(names[:3]) + ", ..." * (len(names) > 3) for names in (mine, theirs))
            hint = "bigmodel finetune; or call the columns as in training, if they hold the same"
            raise InputError(f"no output in common: the model has {ours}", f"the data has {others}", hint)
        places = {name: i for i, name in enumerate(theirs)}
        columns = None if mine == theirs else tuple(places.get(name, -1) for name in mine)
        # The inner task maps what else differs, such as the vocabulary; the outputs are mapped here.
        inner: Any = self.task.for_data(data.with_(classes=mine))
        return type(self)(inner, columns)

    def adopt(self, trained: Any, data: Any) -> tuple[Any, list[str]]:
        return self.task.adopt(trained, data)

    def prepare(self, batch: Batch, key: SampleKey | None = None) -> Batch:
        """Prepare the inputs as `task` does; the labels become (B,K) float32 in the order of the model's outputs.

        ``given`` are the labels of the data in that order, not encoded.
        """
        label = batch["label"].float()
        if label.dim() == 1:  # a sample to predict, whose labels nobody knows
            label = torch.full((len(label), len(self.spec.classes)), torch.nan, device=label.device)
        else:
            label = self.in_order(label)
        return {**self.task.prepare({**batch, "label": self.encode(label)}, key), "given": label}

    def in_order(self, label: Tensor) -> Tensor:
        """Labels of the data (N,K') in the order of the model's outputs (N,K)."""
        if self.columns is None:
            return label
        places = device_constant(self.columns, torch.int64, label.device)
        return torch.where(places >= 0, label[:, places.clamp(min=0)], torch.nan)

    def encode(self, label: Tensor) -> Tensor:
        """Labels (B,K) of the data, NaN if unknown, as the loss takes them."""
        return label

    def logits(self, model: Forward, batch: Batch) -> Tensor:
        return logits_of(model(*(batch[name] for name in self.inputs)), self.spec)

    def loss(self, model: Forward, batch: Batch) -> LossSum:
        logits = self.logits(model, batch)
        losses = self.loss_per_sample(logits, batch["label"])
        if "share" in batch:  # mixed images
            losses = torch.lerp(self.loss_per_sample(logits, batch["other_label"]), losses, batch["share"])
        return LossSum(losses.sum(), len(logits))

    def predict(self, model: Forward, batch: Batch, top: int = 5) -> list[Predictions]:
        """The answer for each sample; see :mod:`bigmodel_cli.tasks.answers`."""
        answer = answer_of(self)
        values = answer.values(self.logits(model, batch).double().cpu().numpy(), self.spec)
        return [answer.choose(row, self.spec, top) for row in values]

    def preprocessing(self) -> dict[str, Any]:
        return {**self.task.preprocessing(), **outputs_described(self.spec)}


def targets_of(source: Source) -> Tensor:
    """(N,K) float32, the labels of a split, without reading its samples.

    Raises:
        InputError: the data has no such labels.
    """
    if not isinstance(source, ValuedSource):
        raise InputError("this data has one class per sample", "expected labels for the task", "--columns label=NAME")
    return source.label_values
