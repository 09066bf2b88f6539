"""A task whose training loss weighs each class; what it evaluates and reports stays as it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.types import Batch, LossSum, Source
from bigmodel_cli.data.balance import class_weights, uneven


class Weighted:
    """`task` with the loss of a sample multiplied by the weight (K,) of its class, the *model's* k-th class."""

    def __init__(self, task: Any, weights: Tensor) -> None:
        plain = task.loss_per_sample
        kept: dict[torch.device, Tensor] = {}  # sent to a GPU once: every send waits for it

        def weighed(logits: Tensor, label: Tensor) -> Tensor:
            own = kept.setdefault(label.device, weights.to(label.device))
            return plain(logits, label) * own[label]  # type: ignore[no-any-return]

        self.task, self._training = task, replace(task, loss_per_sample=weighed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def loss(self, model: nn.Module, batch: Batch) -> LossSum:
        return self._training.loss(model, batch)  # type: ignore[no-any-return]


EVENED = {
    "none": "--balance loss or --balance sampling evens them out",
    "loss": "the training loss weighs them equally",
    "sampling": "an epoch draws them equally often",
}


def imbalance_notes(train: Source, classes: Sequence[str], how: str) -> list[str]:
    """A line where the classes of the train split are uneven, with what ``train.balance = how`` does about it."""
    labels = getattr(train, "labels", None)
    if labels is None or not classes:
        return []
    found = uneven(labels.bincount(minlength=len(classes)).tolist(), classes)
    return [f"{found}; {EVENED[how]}"] if found else []


def labels_of(train: Source, how: str) -> Tensor:
    """(N,) int64: the classes of the train split, for ``train.balance = how``.

    Raises:
        InputError: its samples have none.
    """
    labels = getattr(train, "labels", None)
    if labels is None:
        raise InputError(f"train.balance = {how}", "expected data with a class a sample", "--balance none")
    return labels.cpu()  # type: ignore[no-any-return]


def weighted(task: Any, labels: Tensor) -> Weighted:
    """`task`, told of its data's classes by ``for_data``, with weights that even out `labels` (N,), the data's own."""
    if task.labels is not None:
        labels = torch.tensor(task.labels)[labels]
    return Weighted(task, class_weights(labels[labels >= 0], task.spec.num_classes))
