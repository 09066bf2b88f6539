"""Direct preference optimization. Shapes: B pairs, T tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from bigmodel_cli.adapt.lora import Base, lora
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import methods
from bigmodel_cli.core.tasks import Forward, TaskWrapper
from bigmodel_cli.core.types import Adapted, Batch, LossSum, SampleKey, Start, Task
from bigmodel_cli.metrics.preference import reward_accuracy

SIDES = ("chosen", "rejected")


@methods.register("dpo", lr=5e-5, task="language_modeling", best=("reward_accuracy", "max"))
def dpo(
    start: Start,
    *,
    beta: Annotated[float, Field(gt=0)] = 0.1,
    rank: Annotated[int, Field(gt=0)] | None = None,
    base: Base = "exact",
) -> Adapted:
    """Raises the better of two answers over the worse, relative to the start (Rafailov et al. 2023, eq. 7).

    -log sigmoid(beta ((log p(chosen) - log p0(chosen)) - (log p(rejected) - log p0(rejected)))), where p0 is the
    reference model, the one that training starts from. Its log-probabilities are computed once and stored with the
    run. A smaller `beta` allows a larger deviation from it. With `rank`, LoRA adapters train instead of all weights,
    and the frozen weights are stored as set by `base`.

    Raises:
        InputError: `base` is quantized, but there are no adapters to train.
    """
    if rank is None and base != "exact":
        raise InputError(f"start.base = {base} without adapters", "expected start.rank, or --lora R")
    adapted = Adapted() if rank is None else lora(start, rank=rank, alpha=2.0 * rank, base=base)
    return dataclasses.replace(adapted, objective=lambda task: Preference(task, beta), once=log_probabilities)


class Preference(TaskWrapper):
    """A language modelling task on pairs of answers."""

    unit = "pairs"
    unit_axis = None
    best = ("reward_accuracy", "max")

    def __init__(self, task: Task, beta: float) -> None:
        super().__init__(task)
        self.beta = beta

    def prepare(self, batch: Batch, key: SampleKey | None = None) -> Batch:
        """Prepare tokens and targets (B,T) of each answer, and its reference log-probability (B,) if already computed.

        Raises:
            InputError: the batch does not contain pairs.
        """
        if "rejected" not in batch:
            raise InputError("dpo on data without pairs", 'expected "prompt", "chosen" and "rejected"', "--method full")
        prepared: Batch = {"index": batch["index"]}
        for side, names in zip(SIDES, (("tokens", "learn"), ("rejected", "rejected_learn")), strict=True):
            raw = {"tokens": batch[names[0]], "learn": batch[names[1]], "index": batch["index"]}
            side_batch = self.task.prepare(raw, key)
            prepared |= {side: side_batch["tokens"], f"{side}_targets": side_batch["targets"]}
        return prepared | {name: batch[name] for name in (f"{side}_started" for side in SIDES) if name in batch}

    def count(self, batch: Batch) -> int:
        return len(batch["index"])

    def margins(self, model: Forward, batch: Batch) -> Tensor:
        """Return the reward differences (B,) of the two answers, divided by beta.

        Before the reference log-probabilities are computed, for example during autotuning, the model is its own
        reference.
        """
        log_probs = log_probabilities(model, batch)
        log_ratios = [current - batch.get(side, current.detach()) for side, current in log_probs.items()]
        return log_ratios[0] - log_ratios[1]

    def loss(self, model: Forward, batch: Batch) -> LossSum:
        return LossSum(-F.logsigmoid(self.beta * self.margins(model, batch)).sum(), len(batch["index"]))

    def outputs(self, model: Forward, batch: Batch) -> Batch:
        return {"margin": self.beta * self.margins(model, batch), "index": batch["index"]}

    def evaluate(self, model: Forward, batch: Batch) -> dict[str, Tensor]:
        margin = self.outputs(model, batch)["margin"].double()
        right = reward_accuracy({"margin": margin}).sum()
        count = torch.full((), float(len(margin)), device=margin.device)
        return {"loss": -F.logsigmoid(margin).sum(), "right": right, "margin": margin.sum(), "count": count}

    def summarise(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Return the loss, how often the chosen answer has the larger reward, and the mean reward margin."""
        count = max(sums["count"], 1)
        return {
            "loss": sums["loss"] / count,
            "reward_accuracy": sums["right"] / count,
            "reward_margin": sums["margin"] / count,
        }


def log_probabilities(model: Forward, batch: Batch) -> Batch:
    """Return the log-probability (B,) of each answer. Both are computed in one pass, padded to the same length."""
    length = max(batch[side].shape[1] for side in SIDES)

    def concatenate(suffix: str, fill: int) -> Tensor:
        sides = [batch[side + suffix] for side in SIDES]
        return torch.cat([F.pad(side, (0, length - side.shape[1]), value=fill) for side in sides])

    nats = model(concatenate("", 0), concatenate("_targets", -100), _nats).float().sum(1)
    return {f"{side}_started": sums for side, sums in zip(SIDES, (-nats).chunk(2), strict=True)}


def _nats(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets, reduction="none")
