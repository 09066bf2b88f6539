"""Methods that add a term to the loss: a pull towards the initial weights, or towards a teacher's outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from bigmodel_cli.adapt.freeze import inside
from bigmodel_cli.core.answering import Answers
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import methods
from bigmodel_cli.core.tasks import Forward, TaskWrapper
from bigmodel_cli.core.types import Adapted, Batch, LossSum, SampleKey, Start, Task
from bigmodel_cli.tasks.answers import scale

Weight = Annotated[float, Field(ge=0)]


class Penalised(TaskWrapper):
    """A task that adds `penalty` to the training loss of each unit."""

    def __init__(self, task: Task, penalty: Callable[[], Tensor]) -> None:
        super().__init__(task)
        self.penalty = penalty

    def loss(self, model: Forward, batch: Batch) -> LossSum:
        plain = self.task.loss(model, batch)
        return LossSum(plain.total + self.penalty() * plain.count, plain.count)


class Distilled(TaskWrapper):
    """A classification task whose training loss is `change`(loss, logits (B,K), batch).

    `teach` returns what to add to a raw training batch: the teacher's logits.
    """

    def __init__(
        self,
        task: Task,
        change: Callable[[LossSum, Tensor, Batch], LossSum],
        teach: Callable[[Batch, SampleKey], Batch],
    ) -> None:
        super().__init__(task)
        self.change, self.teach = change, teach

    def prepare(self, batch: Batch, key: SampleKey | None = None) -> Batch:
        prepared = self.task.prepare(batch, key)
        return prepared if key is None else {**prepared, **self.teach(batch, key)}

    def loss(self, model: Forward, batch: Batch) -> LossSum:
        logits: list[Tensor] = []

        def capture_logits(*inputs: Any, **named: Any) -> Tensor:
            logits.append(model(*inputs, **named))
            return logits[-1]

        plain = self.task.loss(capture_logits, batch)
        return self.change(plain, logits[-1].float(), batch)


@methods.register("l2-sp", lr=3e-4, lr_without_batchnorm=5e-5, holds_weights=True)
def l2_sp(start: Start, *, alpha: Weight = 0.1, beta: Weight = 0.01) -> Adapted:
    """L2-SP: train everything, penalizing the distance from the initial weights.

    alpha/2 |w - w0|^2 for the backbone, and beta/2 |w|^2 for the head (Li et al. 2018, "Explicit
    Inductive Bias for Transfer Learning"). Set optimizer.weight_decay to 0, since it would pull the
    backbone towards zero instead.
    """
    from bigmodel_cli.models.adapters.lora import store_method_state

    backbone = {n: p for n, p in start.model.named_parameters() if not inside(n, start.head)}
    head = [p for n, p in start.model.named_parameters() if inside(n, start.head)]
    initial = store_method_state(start.model, backbone)

    def penalty() -> Tensor:
        distance = sum((p - initial[n]).square().sum() for n, p in backbone.items())
        head_norm = sum(p.square().sum() for p in head)  # empty if the head is tied to the embedding
        return (alpha * distance + beta * head_norm) / 2  # type: ignore[return-value]

    return Adapted(objective=lambda task: Penalised(task, penalty))


def _between_classes(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of the softmax at temperature T, summed over (B,K)."""
    of_teacher, of_student = (F.log_softmax(logits / temperature, dim=-1) for logits in (teacher, student))
    return F.kl_div(of_student, of_teacher, reduction="sum", log_target=True) * temperature**2


def _between_labels(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of each label's sigmoid at temperature T, the mean over K summed over B."""
    p, z, t = (teacher / temperature).sigmoid(), student / temperature, teacher / temperature
    yes, no = F.logsigmoid(t) - F.logsigmoid(z), F.logsigmoid(-t) - F.logsigmoid(-z)
    return (p * yes + (1 - p) * no).mean(1).sum() * temperature**2


def _between_numbers(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The squared error to the teacher's numbers, the mean over K summed over B; a temperature means nothing here."""
    return (student - teacher).square().mean(1).sum()


DIVERGENCES = {"classes": _between_classes, "labels": _between_labels, "numbers": _between_numbers}
"""By the kind of answer: (student outputs (B,K), teacher outputs (B,K), temperature) -> sum over the batch."""


def _same_scale(teacher: Any, columns: list[int], student: Any) -> Callable[[Tensor], Tensor]:
    """Outputs (B,K) standardised as the teacher's -> as the student's; the same where nothing is standardised."""
    mean, std = (torch.tensor(values)[columns] for values in scale(teacher))
    own_mean, own_std = (torch.tensor(values) for values in scale(student))
    factor, offset = std / own_std, (mean - own_mean) / own_std
    return lambda logits: logits * factor.to(logits.device) + offset.to(logits.device)


@methods.register("distill", lr=1e-3)
def distill(
    start: Start,
    *,
    teacher: str,
    temperature: Annotated[float, Field(gt=0)] = 4.0,
    weight: Annotated[float, Field(ge=0, le=1)] = 0.9,
) -> Adapted:
    """Everything trains, on the loss and on a teacher's outputs (Hinton et al. 2015).

    (1 - weight) loss + weight T^2 KL(teacher || student), both softened by the temperature T.
    `teacher` is a checkpoint of any architecture that knows all of the student's classes. It gets the same
    augmented samples, with its own preprocessing: its image size and normalization, or its tokenizer.

    Raises:
        InputError: the task has no classes, or the teacher's differ.
    """
    student = start.task
    if not isinstance(student, Answers) or student.answers not in DIVERGENCES:
        raise InputError(f"distill: {_task_name(student)} has no classes", "expected a classifier", "--method full")
    divergence_of = DIVERGENCES[student.answers]
    trained = start.open(teacher)
    teacher_task = _teacher_task(trained, student).for_data(start.data)
    assert isinstance(teacher_task, Answers)
    device = next(start.model.parameters()).device
    teacher_model = trained.model.to(device).eval().requires_grad_(False)
    columns = [trained.task.spec.classes.index(name) for name in student.spec.classes]
    convert = _same_scale(trained.task.spec, columns, student.spec)

    def objective(task: Task) -> Distilled:
        assert isinstance(task, Answers)
        same_augmentation = teacher_task.with_(augment=task.augment)

        def teach(batch: Batch, key: SampleKey) -> Batch:
            blank = {**batch, "label": torch.zeros_like(batch["label"])}  # the teacher orders its classes differently
            with torch.no_grad():
                logits = same_augmentation.outputs(teacher_model, same_augmentation.prepare(blank, key))["logits"]
            return {"teacher": convert(logits[:, columns])}

        def change(plain: LossSum, logits: Tensor, batch: Batch) -> LossSum:
            divergence = divergence_of(logits, batch["teacher"].float(), temperature)
            return LossSum((1 - weight) * plain.total + weight * divergence, plain.count)

        return Distilled(task, change, teach)

    return Adapted(objective=objective)


def _teacher_task(trained: Any, student: Answers) -> Answers:
    """Return the task of the teacher `trained`, after checking that it fits the student.

    Raises:
        InputError: the task differs, or the teacher does not know all of the student's classes.
    """
    task = trained.task
    if not isinstance(task, Answers) or task.name != student.name:
        what = f"distill: the teacher {trained.path} is for {_task_name(task)}"
        raise InputError(what, f"expected {_task_name(student)}, like the student")
    missing = [name for name in student.spec.classes if name not in task.spec.classes]
    if missing:
        raise InputError(f"{trained.path}: the teacher does not know {', '.join(missing[:5])}", "expected every class")
    return task


def _task_name(task: Task) -> str:
    return task.name.replace("_", " ")
