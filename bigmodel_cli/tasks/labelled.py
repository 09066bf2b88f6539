"""What tasks with one class a sample share. Shapes: B batch, K classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.tasks import Predictions
from bigmodel_cli.core.types import Batch
from bigmodel_cli.metrics.classification import accuracy

METRICS = ("accuracy", "top5_accuracy", "loss", "macro_f1", "ece")
"""What ``eval`` reports of classes."""


def label_map(model_classes: Sequence[str], data_classes: Sequence[str]) -> tuple[int, ...] | None:
    """The model's label for each label of the data, matched by *name*; -1: no such class; None: they agree.

    Raises:
        InputError: they have no class in common.
    """
    if tuple(model_classes) == tuple(data_classes):
        return None
    if not set(model_classes) & set(data_classes):
        ours, theirs = ", ".join(model_classes[:3]), ", ".join(data_classes[:3])
        raise InputError(
            f"no class in common: the model has {ours}, ...", f"the data {theirs}, ...", "bigmodel finetune"
        )
    known = {name: i for i, name in enumerate(model_classes)}
    return tuple(known.get(name, -1) for name in data_classes)


def outputs(logits: Tensor, batch: Batch, loss: Callable[[Tensor, Tensor], Tensor]) -> Batch:
    """logits (B,K) fp32, loss (B,), label (B,) and index (B,): what reports are made of."""
    logits = logits.float()
    # Label -1 is a class the model never saw: it has no loss, and reports leave it out.
    losses = loss(logits, batch["label"].clamp(min=0))
    return {"logits": logits, "loss": losses, "label": batch["label"], "index": batch["index"]}


def sums(out: Batch) -> dict[str, Tensor]:
    known = out["label"] >= 0
    correct = accuracy(out) & known
    return {"loss": (out["loss"] * known).sum(), "correct": correct.sum(), "count": known.sum()}


def summarise(totals: Mapping[str, float]) -> dict[str, float]:
    count = max(totals["count"], 1)
    return {"loss": totals["loss"] / count, "accuracy": totals["correct"] / count}


def likeliest(logits: Tensor, classes: Sequence[str], top: int) -> list[Predictions]:
    """For each sample the `top` classes with their probabilities, likeliest first."""
    best = logits.float().softmax(1).topk(min(top, len(classes)), dim=1)
    return [
        [(classes[k], p) for p, k in zip(ps, ks, strict=True)]
        for ps, ks in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]
