"""The items that a user chooses next, ranked over the whole catalogue.

Shapes: B batch, S items of a user, L window, I items, R held-out items. Item numbers in histories start at 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bigmodel_cli.core.device_constant import device_constant
from bigmodel_cli.core.interactions import InteractionSpec, NextItems
from bigmodel_cli.core.keyed_random import uniform
from bigmodel_cli.core.registry import tasks
from bigmodel_cli.core.tasks import Forward
from bigmodel_cli.core.types import Batch, LossSum, SampleKey, Source
from bigmodel_cli.metrics.recommendation import SHOWN, hit_rate, mrr, ndcg
from bigmodel_cli.tasks.catalogue import adopt, check_ids, hide, ranks

NOTHING = -100  # a target that the loss ignores
MOST_SCORES = 1 << 24  # of one forward pass in evaluation: 64 MB


@tasks.register(spec_type=InteractionSpec, augments=False, answers="items", pipeline_tag="other")
def recommendation(
    spec: InteractionSpec, loss: Callable[[Tensor, Tensor], Tensor], augment: Callable[..., Tensor]
) -> Recommendation:
    """The next items of a user, ranked over the whole catalogue."""
    return Recommendation(spec, loss)


@dataclass(frozen=True)
class Recommendation:
    """See :class:`Task` in core/tasks.py and :class:`Recommends` in core/interactions.py."""

    spec: InteractionSpec
    loss_per_item: Callable[[Tensor, Tensor], Tensor]
    name = "recommendation"
    answers = "items"
    unit = "items"
    unit_axis = 1
    best = ("ndcg_10", "max")
    inputs = ("user", "history")
    report = "ranking"
    metrics = ("ndcg_10", "hit_rate_10", "hit_rate_5", "ndcg_5", "recall_20", "mrr", "coverage_10",
               "popularity_bias_10")  # fmt: skip

    def fit_spec(self, train: Source) -> Recommendation:
        return self

    def for_data(self, data: InteractionSpec) -> Recommendation:
        """Check that users and items are the model's: they are known by id, never by position."""
        check_ids(self.spec, data)
        return self

    def adopt(self, trained: InteractionSpec, data: InteractionSpec) -> tuple[InteractionSpec, list[str]]:
        return adopt(trained, data)

    def prepare(self, batch: Batch, key: SampleKey | None = None) -> Batch:
        """Turn windows ``items`` (B,L+1) into ``history`` (B,L) and ``targets`` (B,L); held-out items stay as they are.

        ``noise`` (B,) int64 seeds the negative samples of each window; it is the same in every epoch without a `key`.
        """
        if "items" not in batch:
            return batch
        items = batch["items"]
        targets = torch.where(items[:, 1:] > 0, items[:, 1:] - 1, NOTHING)
        drawn = uniform(key, 0) if key is not None else torch.zeros(len(items), device=items.device)
        return {
            "history": items[:, :-1].clamp(min=0), "user": batch["user"], "targets": targets, "seen": batch["seen"],
            "noise": (drawn * (1 << 24)).long(), "index": batch["index"],
        }  # fmt: skip

    def count(self, batch: Batch) -> int:
        return int((batch["items"][:, 1:] > 0).sum()) if "items" in batch else int((batch["relevant"] >= 0).sum())

    def loss(self, model: Forward, batch: Batch) -> LossSum:
        wanted = NextItems(batch["targets"], batch["seen"], batch["noise"], self.loss_per_item)
        losses = model(batch["user"], batch["history"], wanted)
        return LossSum(losses.sum(), (batch["targets"] != NOTHING).sum())

    def outputs(self, model: Forward, batch: Batch) -> Batch:
        """Per user: rank (B,R), top (B,20) items, the loss of the held-out items, and popularity.

        What the user has seen is not ranked. Ranks are floats, so that a faster form of the model that changes them
        is noticed.
        """
        rows = max(1, MOST_SCORES // self.spec.items)
        parts = [self._ranked(model, part) for part in _split(as_held_out(batch), rows)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _ranked(self, model: Forward, batch: Batch) -> Batch:
        history, relevant = batch["history"], batch["relevant"]
        scores = hide(self.scores(model, batch["user"], history), history)
        held = (relevant >= 0).sum(1)
        logs = scores.log_softmax(1).gather(1, relevant.clamp(min=0)).masked_fill(relevant < 0, 0)
        best = scores.topk(min(SHOWN, scores.shape[1]), dim=1)
        top = best.indices.masked_fill(best.values.isinf(), -1)
        return {
            "rank": ranks(scores, relevant).float(), "top": top, "loss": -logs.sum(1), "held": held,
            "user": batch["user"],
            "items": torch.full_like(held, self.spec.items), **self._popularity(top[:, :10], history, relevant),
            "index": batch["index"],
        }  # fmt: skip

    def _popularity(self, top: Tensor, history: Tensor, relevant: Tensor) -> Batch:
        """Mean train interactions of the recommended items, of the user's own and of the held-out ones; (B,) each."""
        counts = device_constant(tuple(self.spec.item_counts) or (1.0,), torch.float32, top.device)

        def mean(items: Tensor) -> Tensor:
            real = items >= 0
            at = items.clamp(min=0) if self.spec.item_counts else torch.zeros_like(items)
            return (counts[at] * real).sum(1) / real.sum(1).clamp(min=1)

        lengths = (history > 0).sum(1)
        return {"top_count": mean(top), "history_count": mean(history - 1), "held_count": mean(relevant),
                "activity": lengths}  # fmt: skip

    def evaluate(self, model: Forward, batch: Batch) -> dict[str, Tensor]:
        out = self.outputs(model, batch)
        sums = {"ndcg_10": ndcg(out, k=10), "hit_rate_10": hit_rate(out, k=10), "mrr": mrr(out)}
        totals = {name: value.double().sum() for name, value in sums.items()}
        users = torch.full((), len(out["index"]), device=out["index"].device)
        return {"loss": out["loss"].double().sum(), "count": out["held"].sum(), "users": users, **totals}

    def summarise(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Return the loss in nats per held-out item, and the means over users of NDCG@10, HR@10 and 1/rank."""
        users = max(sums["users"], 1)
        ranking = {name: sums[name] / users for name in ("ndcg_10", "hit_rate_10", "mrr")}
        return {"loss": sums["loss"] / max(sums["count"], 1), **ranking}

    def scores(self, model: Forward, users: Tensor, histories: Tensor) -> Tensor:
        kind = users.device.type
        # bf16 has too few digits to tell many items apart.
        with torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext():
            return model(users, histories).float()  # type: ignore[no-any-return]

    def preprocessing(self) -> dict[str, Any]:
        """Describe the inputs for other programs."""
        return {
            "history": f"places in item_ids plus 1, oldest first, then 0; the latest {self.spec.context} count",
            "user": "place in user_ids", "context": self.spec.context,
        }  # fmt: skip

    def example(self, batch_size: int) -> tuple[Tensor, ...]:
        history = torch.ones(batch_size, self.spec.context, dtype=torch.int64)
        return torch.zeros(batch_size, dtype=torch.int64), history


def as_held_out(batch: Batch) -> Batch:
    """A prepared window of the train split as a history whose last item is held out: for ``eval --split train``."""
    if "relevant" in batch:
        return batch
    last = (batch["targets"] != NOTHING).sum(1, keepdim=True) - 1
    return {**batch, "relevant": batch["targets"].gather(1, last)}


def _split(batch: Batch, rows: int) -> list[Batch]:
    parts = {name: value.split(rows) for name, value in batch.items()}
    return [{name: part[i] for name, part in parts.items()} for i in range(len(parts["index"]))]
