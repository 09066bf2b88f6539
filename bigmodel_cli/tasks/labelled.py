"""Code shared by the tasks with one class per sample. Shapes: B batch, K classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.tasks import Predictions
from bigmodel_cli.core.types import Batch
from bigmodel_cli.metrics.classification import accuracy

METRICS = ("accuracy", "top5_accuracy", "loss", "macro_f1", "ece")
"""The metrics that ``eval`` reports for classification."""


def label_map(model_classes: Sequence[str], data_classes: Sequence[str]) -> tuple[int, ...] | None:
    """Map the data's labels to the model's, matched by class *name*. -1: unknown class. None: the classes are the same.

    Raises:
        InputError: the model and the data have no class in common.
    """
    if tuple(model_classes) == tuple(data_classes):
        return None
    if not set(model_classes) & set(data_classes):
        model_names, data_names = ", ".join(model_classes[:3]), ", ".join(data_classes[:3])
        raise InputError(
            f"no class in common: the model has {model_names}, ...", f"the data {data_names}, ...", "bigmodel finetune"
        )
    label_of = {name: i for i, name in enumerate(model_classes)}
    return tuple(label_of.get(name, -1) for name in data_classes)


def outputs(logits: Tensor, batch: Batch, loss: Callable[[Tensor, Tensor], Tensor]) -> Batch:
    """Return what reports need: logits (B,K) fp32, loss (B,), label (B,) and index (B,)."""
    logits = logits.float()
    # Label -1 is a class unknown to the model. Reports exclude it, so its loss does not matter.
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
    """Return the `top` classes and probabilities for each sample, most likely first."""
    best = logits.float().softmax(1).topk(min(top, len(classes)), dim=1)
    return [
        [(classes[k], p) for p, k in zip(ps, ks, strict=True)]
        for ps, ks in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]
