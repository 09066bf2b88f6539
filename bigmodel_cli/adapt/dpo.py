"""Direct preference optimization. Shapes: B pairs, T tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from bigmodel_cli.adapt.lora import Base, lora
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import methods
from bigmodel_cli.core.types import Adapted, Batch, LossSum, SampleKey, Start

SIDES = ("chosen", "rejected")


@methods.register("dpo", lr=5e-5, task="language_modeling")
def dpo(
    start: Start,
    *,
    beta: Annotated[float, Field(gt=0)] = 0.1,
    rank: Annotated[int, Field(gt=0)] | None = None,
    base: Base = "exact",
) -> Adapted:
    """Direct preference optimization on pairs of answers (Rafailov et al. 2023, eq. 7).

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


class Preference:
    """A language modelling task on pairs of answers; everything else is delegated to the task."""

    unit = "pairs"
    best = ("reward_accuracy", "max")

    def __init__(self, task: Any, beta: float) -> None:
        self.task, self.beta = task, beta

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def prepare(self, batch: Batch, key: SampleKey | None = None) -> Batch:
        """Tokens and targets (B,T) of each side, and what the start said of them where it has: (B,) each.

        Raises:
            InputError: the batch is not of pairs.
        """
        if "rejected" not in batch:
            raise InputError("dpo on data without pairs", 'expected "prompt", "chosen" and "rejected"', "--method full")
        prepared: Batch = {"index": batch["index"]}
        for side, names in zip(SIDES, (("tokens", "learn"), ("rejected", "rejected_learn")), strict=True):
            raw = {"tokens": batch[names[0]], "learn": batch[names[1]], "index": batch["index"]}
            made = self.task.prepare(raw, key)
            prepared |= {side: made["tokens"], f"{side}_targets": made["targets"]}
        return prepared | {name: batch[name] for name in (f"{side}_started" for side in SIDES) if name in batch}

    def count(self, batch: Batch) -> int:
        return len(batch["index"])

    def margins(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B,) differences of the rewards of the two answers, in units of 1 / beta.

        Where nobody has asked the start yet, as in a look at a run before its first step, the model is the start.
        """
        now = log_probabilities(model, batch)
        gains = [said - batch.get(side, said.detach()) for side, said in now.items()]
        return gains[0] - gains[1]

    def loss(self, model: nn.Module, batch: Batch) -> LossSum:
        return LossSum(-F.logsigmoid(self.beta * self.margins(model, batch)).sum(), len(batch["index"]))

    def outputs(self, model: nn.Module, batch: Batch) -> Batch:
        return {"margin": self.beta * self.margins(model, batch), "index": batch["index"]}

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        margin = self.outputs(model, batch)["margin"].double()
        # A margin of 0, as every one is at the start, is right half the time.
        right = ((margin > 0).double() + 0.5 * (margin == 0).double()).sum()
        count = torch.tensor(float(len(margin)), device=margin.device)
        return {"loss": -F.logsigmoid(margin).sum(), "right": right, "margin": margin.sum(), "count": count}

    def summarise(self, sums: Mapping[str, float]) -> dict[str, float]:
        """loss; how often the better answer has the larger reward; by how much on average."""
        count = max(sums["count"], 1)
        return {
            "loss": sums["loss"] / count,
            "reward_accuracy": sums["right"] / count,
            "reward_margin": sums["margin"] / count,
        }


def log_probabilities(model: nn.Module, batch: Batch) -> Batch:
    """(B,) log-probability of each answer as a whole, by side: both in one pass, filled up to the same length."""
    longest = max(batch[side].shape[1] for side in SIDES)

    def both(suffix: str, fill: int) -> Tensor:
        sides = [batch[side + suffix] for side in SIDES]
        return torch.cat([F.pad(side, (0, longest - side.shape[1]), value=fill) for side in sides])

    nats = model(both("", 0), both("_targets", -100), _nats).float().sum(1)
    return {f"{side}_started": part for side, part in zip(SIDES, (-nats).chunk(2), strict=True)}


def _nats(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets, reduction="none")
