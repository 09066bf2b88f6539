"""Class weights in the training loss. Evaluation and reports stay unweighted."""

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
    """`task` with the training loss of each sample multiplied by the weight of its class.

    `weights` (K,) are in the order of the *model's* classes.
    """

    def __init__(self, task: Classifies, weights: Tensor) -> None:
        per_sample = task.loss_per_sample
        on_device: dict[torch.device, Tensor] = {}  # one copy per device: each transfer would synchronize with the GPU

        def weighted_loss(logits: Tensor, label: Tensor) -> Tensor:
            device_weights = on_device.setdefault(label.device, weights.to(label.device))
            return per_sample(logits, label) * device_weights[label]

        super().__init__(task)
        self._training = task.with_(loss_per_sample=weighted_loss)

    def loss(self, model: Forward, batch: Batch) -> LossSum:
        return self._training.loss(model, batch)


BALANCE_NOTES = {
    "none": "--balance loss or --balance sampling corrects for this",
    "loss": "the loss uses class weights",
    "sampling": "sampling is class-balanced",
}


def imbalance_notes(train: Source, classes: Sequence[str], how: str) -> list[str]:
    """One line if the classes of the train split are imbalanced, and what ``train.balance = how`` does about it."""
    if not isinstance(train, LabelledSource) or not classes:
        return []
    imbalance = describe_imbalance(train.labels.bincount(minlength=len(classes)).tolist(), classes)
    return [f"{imbalance}; {BALANCE_NOTES[how]}"] if imbalance else []


def class_labels(train: Source, how: str) -> Tensor:
    """Return the class labels (N,) int64 of the train split, which ``train.balance = how`` needs.

    Raises:
        InputError: the data has no class labels.
    """
    if not isinstance(train, LabelledSource):
        raise InputError(f"train.balance = {how}", "expected data with one class per sample", "--balance none")
    return train.labels.cpu()


def with_class_weights(task: Task, labels: Tensor) -> Weighted:
    """Add class weights that balance `labels` (N,), the data's own labels.

    `task` is the result of ``for_data``, so it knows how the data's classes map to the model's.

    Raises:
        InputError: the task has no classes.
    """
    if not isinstance(task, Classifies):
        raise InputError(f"train.balance = loss for {task.name.replace('_', ' ')}", "expected a classifier")
    if task.label_map is not None:
        labels = torch.tensor(task.label_map)[labels]
    return Weighted(task, class_weights(labels[labels >= 0], task.spec.num_classes))
