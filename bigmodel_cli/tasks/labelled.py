"""Code shared by the tasks with one class per sample. Shapes: B batch, K classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.types import Batch, Spec
from bigmodel_cli.metrics.classification import accuracy
from bigmodel_cli.tasks.answers import SCORES, output_values, temperature

METRICS = ("accuracy", "top5_accuracy", "loss", "macro_f1", "ece")
"""The metrics that ``eval`` reports for classification."""
OF_PROBABILITIES = ("ece",)
"""Those of METRICS that only probabilities have."""


def metrics_of(spec: Spec) -> tuple[str, ...]:
    """METRICS, without those of probabilities where the outputs are scores."""
    return tuple(name for name in METRICS if name not in OF_PROBABILITIES or SCORES not in output_values(spec))


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


def logits_of(found: Any, spec: Spec) -> Tensor:
    """A model's outputs as logits (B,K), float32.

    Raises:
        InputError: they are not K numbers for each sample, as of a network whose head was left as it was.
    """
    shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
    if not isinstance(found, Tensor) or shape[1:] != (len(spec.classes),):
        what = f"the model gives {shape}, the data has {len(spec.classes)} classes"
        raise InputError(what, "expected one number for each class of each sample", "the model's last layer")
    return found.float()


def outputs(logits: Tensor, batch: Batch, loss: Callable[[Tensor, Tensor], Tensor], spec: Spec) -> Batch:
    """Return what reports need: logits (B,K) fp32, loss (B,), label (B,) and index (B,).

    The logits are divided by the temperature, if one was fitted; the loss is the training loss, without it.
    """
    logits = logits_of(logits, spec)
    # Label -1 is a class unknown to the model. Reports exclude it, so its loss does not matter.
    losses = loss(logits, batch["label"].clamp(min=0))
    return {"logits": logits / temperature(spec), "loss": losses, "label": batch["label"], "index": batch["index"]}


def sums(out: Batch) -> dict[str, Tensor]:
    known = out["label"] >= 0
    correct = accuracy(out) & known
    return {"loss": (out["loss"] * known).sum(), "correct": correct.sum(), "count": known.sum()}


def summarise(totals: Mapping[str, float]) -> dict[str, float]:
    count = max(totals["count"], 1)
    return {"loss": totals["loss"] / count, "accuracy": totals["correct"] / count}
