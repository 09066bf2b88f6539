"""Any number of labels per sample. Shapes: N samples, B batch, K labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor

from bigmodel_cli.core.device_constant import device_constant
from bigmodel_cli.core.registry import tasks
from bigmodel_cli.core.tasks import Forward
from bigmodel_cli.core.types import Batch, ImageSpec, Source
from bigmodel_cli.metrics.intervals import measure
from bigmodel_cli.tasks.answers import thresholds
from bigmodel_cli.tasks.relabelled import OVER, Relabelled, inputs_of, targets_of

METRICS = ("mean_average_precision", "micro_f1", "label_macro_f1", "hamming_loss", "loss", "label_ece")
"""The metrics that ``eval`` reports."""
IN_TRAINING = ("mean_average_precision", "micro_f1", "label_macro_f1", "hamming_loss", "loss")


@tasks.register(
    spec_type=ImageSpec,
    over=OVER,
    answers="labels",
    default_loss="binary_cross_entropy",
    pipeline_tag="image-classification",
)
def multi_label_classification(
    spec: Any, loss: Callable[[Tensor, Tensor], Tensor], augment: Callable[..., Tensor]
) -> MultiLabelClassification:
    """Any number of labels per image or text."""
    return MultiLabelClassification(inputs_of(spec, loss, augment))


class MultiLabelClassification(Relabelled):
    """See :class:`Answers` and :class:`FitsToVal` in core/tasks.py. Thresholds are chosen on val, one a label."""

    name = "multi_label_classification"
    answers = "labels"
    best = ("mean_average_precision", "max")
    report = "labels"
    metrics = METRICS

    def fit_labels(self, train: Source) -> Self:
        targets_of(train)
        return self

    def balanced(self, train: Source) -> Self:
        """The task with the loss of the positives of each label weighted by its negatives / positives on train."""
        targets = self.in_order(targets_of(train))
        positives, negatives = (targets == 1).sum(0).double(), (targets == 0).sum(0).double()
        weights = torch.where(positives > 0, negatives / positives.clamp(min=1), 1.0).float()
        per_sample = self.loss_per_sample
        on_device: dict[torch.device, Tensor] = {}

        def weighted(logits: Tensor, target: Tensor) -> Tensor:
            positive_weights = on_device.setdefault(logits.device, weights.to(logits.device))
            each = per_sample(logits.reshape(-1, 1), target.reshape(-1, 1)).view_as(logits)  # one label at a time
            known = (~target.isnan()).sum(1).clamp(min=1)
            return (each * torch.where(target == 1, positive_weights, 1.0)).sum(1) / known

        return self.with_(loss_per_sample=weighted)

    def outputs(self, model: Forward, batch: Batch) -> Batch:
        """logits (B,K), targets (B,K) int8 with -1 if unknown, decisions (B,K) bool, loss (B,) and index (B,)."""
        logits, label = self.logits(model, batch), batch["label"]
        return {
            "logits": logits,
            "targets": label.nan_to_num(-1).to(torch.int8),
            "decisions": decide(logits, self.spec),
            "loss": self.loss_per_sample(logits, label),
            "index": batch["index"],
        }

    def evaluate(self, model: Forward, batch: Batch) -> dict[str, Tensor]:
        out = self.outputs(model, batch)
        known = out["targets"] >= 0
        wrong, hit = out["decisions"] != (out["targets"] == 1), out["decisions"] & (out["targets"] == 1)
        return {
            "loss": out["loss"].sum(),
            "count": torch.full((), len(known), device=known.device),
            "known": known.sum(),
            "wrong": (wrong & known).sum(),
            "hit": hit.sum(),
            "either": (out["decisions"] & known).sum() + (out["targets"] == 1).sum(),
        }

    def summarise(self, sums: Mapping[str, float]) -> dict[str, float]:
        return {
            "loss": sums["loss"] / max(sums["count"], 1),
            "micro_f1": 2 * sums["hit"] / max(sums["either"], 1),
            "hamming_loss": sums["wrong"] / max(sums["known"], 1),
        }

    def fit_to_val(self, outputs: Batch) -> Self:
        """The task with the threshold of each label that has the best F1 on these outputs; 0.5 without positives."""
        chosen = choose_thresholds(outputs["logits"], outputs["targets"])
        return self.with_spec(self.spec.with_(outputs=(("thresholds", chosen),)))

    def score(self, outputs: Batch) -> dict[str, float]:
        decided = {**outputs, "decisions": decide(outputs["logits"], self.spec)}
        found = measure(IN_TRAINING, decided, resamples=0)
        return {
            "loss": found["loss"].value,
            **{name: found[name].value if name in found else 0.0 for name in IN_TRAINING},
        }


def decide(logits: Tensor, spec: Any) -> Tensor:
    """(B,K) bool: whether each label holds."""
    return logits.sigmoid() >= device_constant(tuple(thresholds(spec)), logits.dtype, logits.device)


def choose_thresholds(logits: Tensor, targets: Tensor) -> tuple[float, ...]:
    """The probability (K,) from which each label holds, for the best F1 on logits (N,K) and targets, -1 if unknown.

    It lies halfway between two predictions, so that near copies of them are decided alike.
    """
    found = []
    for k in range(logits.shape[1]):
        known = targets[:, k] >= 0
        positive = targets[known, k] == 1
        if not positive.any():
            found.append(0.5)
            continue
        probability, order = logits[known, k].double().sigmoid().sort(descending=True, stable=True)
        hits = positive[order].cumsum(0).double()
        f1 = 2 * hits / (torch.arange(1, len(hits) + 1) + hits[-1])
        last = torch.cat([probability[1:] < probability[:-1], torch.tensor([True])])  # of a group of equal predictions
        at = int(torch.where(last, f1, -1.0).argmax())
        below = float(probability[at + 1]) if at + 1 < len(probability) else 0.0
        found.append((float(probability[at]) + below) / 2)
    return tuple(found)
