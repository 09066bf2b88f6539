"""Methods that add a term to the loss: a pull towards the initial weights, or towards a teacher's outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from bigmodel_cli.adapt.freeze import inside
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import methods
from bigmodel_cli.core.types import Adapted, Batch, LossSum, SampleKey, Start

Weight = Annotated[float, Field(ge=0)]


class Regularised:
    """A task whose training loss is `change`(loss, logits, batch); all else is the task's own."""

    def __init__(
        self,
        task: Any,
        change: Callable[[LossSum, Tensor, Batch], LossSum],
        also: Callable[[Batch, SampleKey], Batch] | None = None,
    ) -> None:
        self.task, self.change, self.also = task, change, also

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def prepare(self, batch: Batch, key: SampleKey | None = None) -> Batch:
        """The task's batch and, in training, what `also` adds to it."""
        prepared: Batch = self.task.prepare(batch, key)
        return prepared if key is None or self.also is None else {**prepared, **self.also(batch, key)}

    def loss(self, model: nn.Module, batch: Batch) -> LossSum:
        seen: list[Tensor] = []

        def watched(*inputs: Tensor) -> Tensor:
            seen.append(model(*inputs))
            return seen[-1]

        plain = self.task.loss(watched, batch)
        return self.change(plain, seen[-1].float(), batch)


@methods.register("l2-sp", lr=3e-4, holds_weights=True)
def l2_sp(start: Start, *, alpha: Weight = 0.1, beta: Weight = 0.01) -> Adapted:
    """L2-SP: train everything, penalizing the distance from the initial weights.

    alpha/2 |w - w0|^2 for the backbone, and beta/2 |w|^2 for the head (Li et al. 2018, "Explicit
    Inductive Bias for Transfer Learning"). Set optimizer.weight_decay to 0, since it would pull the
    backbone towards zero instead.
    """
    from bigmodel_cli.models.adapters.lora import store_method_state

    backbone = {n: p for n, p in start.model.named_parameters() if not inside(n, start.head)}
    head = [p for n, p in start.model.named_parameters() if inside(n, start.head)]
    began = store_method_state(start.model, backbone)

    def change(plain: LossSum, logits: Tensor, batch: Batch) -> LossSum:
        far = sum((p - began[n]).square().sum() for n, p in backbone.items())
        large = sum(p.square().sum() for p in head)  # empty if the head is tied to the embedding
        return LossSum(plain.total + (alpha * far + beta * large) / 2 * plain.count, plain.count)

    return Adapted(objective=lambda task: Regularised(task, change))


@methods.register("distill", lr=1e-3)
def distill(
    start: Start,
    *,
    teacher: str,
    temperature: Annotated[float, Field(gt=0)] = 4.0,
    weight: Annotated[float, Field(ge=0, le=1)] = 0.9,
) -> Adapted:
    """Knowledge distillation from a teacher checkpoint (Hinton et al. 2015).

    (1 - weight) loss + weight T^2 KL(teacher || student), both softened by the temperature T.
    `teacher` is a checkpoint of any architecture that knows all of the student's classes. It
    sees the same augmented images, at its own size and normalization.
    """
    trained = start.open(teacher)
    device = next(start.model.parameters()).device
    expert = trained.model.to(device).eval().requires_grad_(False)

    def objective(task: Any) -> Regularised:
        columns = _columns(trained, task)
        its_task = dataclasses.replace(trained.task, augment=task.augment)

        def also(batch: Batch, key: SampleKey) -> Batch:
            blank = {**batch, "label": torch.zeros_like(batch["label"])}  # its class indices differ from ours
            with torch.no_grad():
                logits = its_task.outputs(expert, its_task.prepare(blank, key))["logits"]
            return {"teacher": logits if columns is None else logits[:, columns]}

        def change(plain: LossSum, logits: Tensor, batch: Batch) -> LossSum:
            soft = F.log_softmax(batch["teacher"].float() / temperature, dim=-1)
            ours = F.log_softmax(logits / temperature, dim=-1)
            apart = F.kl_div(ours, soft, reduction="sum", log_target=True) * temperature**2
            return LossSum((1 - weight) * plain.total + weight * apart, plain.count)

        return Regularised(task, change, also)

    return Adapted(objective=objective)


def _columns(trained: Any, task: Any) -> list[int] | None:
    """The teacher's output index for each of the student's classes, matched by name; None without classes."""
    ours, its = getattr(task.spec, "classes", None), getattr(trained.task.spec, "classes", None)
    if ours is None or its is None:
        return None
    missing = [name for name in ours if name not in its]
    if missing:
        raise InputError(f"{trained.path}: the teacher does not know {', '.join(missing[:5])}", "expected every class")
    return [its.index(name) for name in ours]
