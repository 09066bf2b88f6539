"""A task whose training loss weighs each class; what it evaluates and reports stays as it was."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.sources import LabelledSource
from bigmodel_cli.core.tasks import Classifies, Forward, TaskWrapper
from bigmodel_cli.core.types import Batch, LossSum, Source, Task
from bigmodel_cli.data.balance import class_weights, describe_imbalance


class Weighted(TaskWrapper):
    """`task` with the loss of a sample multiplied by the weight (K,) of its class, the *model's* k-th class."""

    def __init__(self, task: Classifies, weights: Tensor) -> None:
        plain = task.loss_per_sample
        kept: dict[torch.device, Tensor] = {}  # sent to a GPU once: every send waits for it

        def weighed(logits: Tensor, label: Tensor) -> Tensor:
            own = kept.setdefault(label.device, weights.to(label.device))
            return plain(logits, label) * own[label]

        super().__init__(task)
        self._training = task.with_(loss_per_sample=weighed)

    def loss(self, model: Forward, batch: Batch) -> LossSum:
        return self._training.loss(model, batch)


EVENED = {
    "none": "--balance loss or --balance sampling evens them out",
    "loss": "the training loss weighs them equally",
    "sampling": "an epoch draws them equally often",
}


def imbalance_notes(train: Source, classes: Sequence[str], how: str) -> list[str]:
    """A line if the classes of the train split are imbalanced, with what ``train.balance = how`` does about it."""
    if not isinstance(train, LabelledSource) or not classes:
        return []
    found = describe_imbalance(train.labels.bincount(minlength=len(classes)).tolist(), classes)
    return [f"{found}; {EVENED[how]}"] if found else []


def labels_of(train: Source, how: str) -> Tensor:
    """(N,) int64: the classes of the train split, for ``train.balance = how``.

    Raises:
        InputError: its samples have none.
    """
    if not isinstance(train, LabelledSource):
        raise InputError(f"train.balance = {how}", "expected data with a class a sample", "--balance none")
    return train.labels.cpu()


def weighted(task: Task, labels: Tensor) -> Weighted:
    """`task`, told of its data's classes by ``for_data``, with weights that even out `labels` (N,), the data's own.

    Raises:
        InputError: the task has no classes.
    """
    if not isinstance(task, Classifies):
        raise InputError(f"train.balance = loss for {task.name.replace('_', ' ')}", "expected a classifier")
    if task.label_map is not None:
        labels = torch.tensor(task.label_map)[labels]
    return Weighted(task, class_weights(labels[labels >= 0], task.spec.num_classes))
