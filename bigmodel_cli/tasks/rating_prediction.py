"""The rating that a user gives an item. Shapes: B batch, I items."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.interactions import InteractionSpec
from bigmodel_cli.core.registry import tasks
from bigmodel_cli.core.tasks import Forward
from bigmodel_cli.core.types import Batch, LossSum, SampleKey, Source
from bigmodel_cli.tasks.catalogue import adopt, check_ids

PAIRS = 1 << 20  # pairs of user and item in one forward pass


@tasks.register(spec_type=InteractionSpec, augments=False, answers="rating", pipeline_tag="tabular-regression")
def rating_prediction(
    spec: InteractionSpec, loss: Callable[[Tensor, Tensor], Tensor], augment: Callable[..., Tensor]
) -> RatingPrediction:
    """The rating of an item by a user."""
    return RatingPrediction(spec, loss)


@dataclass(frozen=True)
class RatingPrediction:
    """See :class:`Task` in core/tasks.py and :class:`Recommends` in core/interactions.py."""

    spec: InteractionSpec
    loss_per_rating: Callable[[Tensor, Tensor], Tensor]
    name = "rating_prediction"
    answers = "rating"
    unit = "ratings"
    unit_axis = None
    best = ("rmse", "min")
    inputs = ("user", "item")
    report = "ratings"
    metrics = ("rmse", "mae")

    def fit_spec(self, train: Source) -> RatingPrediction:
        """The task itself.

        Raises:
            InputError: all ratings are the same, as those of clicks are.
        """
        if self.spec.low == self.spec.high:
            hint = "bigmodel train two-tower --data ... ranks items by what users did"
            raise InputError(f"every rating is {self.spec.low:g}", "expected ratings that differ", hint)
        return self

    def for_data(self, data: InteractionSpec) -> RatingPrediction:
        """Check that users and items are the model's: they are known by id, never by position."""
        check_ids(self.spec, data)
        return self

    def adopt(self, trained: InteractionSpec, data: InteractionSpec) -> tuple[InteractionSpec, list[str]]:
        return adopt(trained, data)

    def prepare(self, batch: Batch, key: SampleKey | None = None) -> Batch:
        """user, item (B,) int64 and rating (B,) float32, as they are."""
        return batch

    def count(self, batch: Batch) -> int:
        return len(batch["rating"])

    def loss(self, model: Forward, batch: Batch) -> LossSum:
        """The registered loss of predicted and given rating, each as one number."""
        predicted = model(batch["user"], batch["item"]).float()
        losses = self.loss_per_rating(predicted[:, None], batch["rating"][:, None])
        return LossSum(losses.sum(), len(losses))

    def outputs(self, model: Forward, batch: Batch) -> Batch:
        """Per rating: the prediction, clipped to the range of ratings, its errors, and the user and item."""
        predicted = model(batch["user"], batch["item"]).float().clamp(self.spec.low, self.spec.high)
        error = predicted - batch["rating"]
        kept = {name: batch[name] for name in ("user", "item", "rating", "index")}
        return {
            "prediction": predicted, "squared": error.square(), "absolute": error.abs(),
            "count": torch.ones_like(error), **kept,
        }  # fmt: skip

    def evaluate(self, model: Forward, batch: Batch) -> dict[str, Tensor]:
        out = self.outputs(model, batch)
        return {"loss": out["squared"].double().sum(), "absolute": out["absolute"].double().sum(),
                "count": out["count"].sum()}  # fmt: skip

    def summarise(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Return the mean squared error as the loss, its root, and the mean absolute error."""
        count = max(sums["count"], 1)
        return {"loss": sums["loss"] / count, "rmse": (sums["loss"] / count) ** 0.5, "mae": sums["absolute"] / count}

    def scores(self, model: Forward, users: Tensor, histories: Tensor) -> Tensor:
        """The predicted ratings (B,I) of every item by `users` (B,)."""
        every = torch.arange(self.spec.items, device=users.device)
        rows = []
        for user in users:
            parts = [model(user.expand(len(part)), part).float() for part in every.split(PAIRS)]
            rows.append(torch.cat(parts))
        return torch.stack(rows)

    def preprocessing(self) -> dict[str, Any]:
        """Describe the inputs for other programs."""
        return {"user": "place in user_ids", "item": "place in item_ids", "range": [self.spec.low, self.spec.high]}

    def example(self, batch_size: int) -> tuple[Tensor, ...]:
        return torch.zeros(batch_size, dtype=torch.int64), torch.zeros(batch_size, dtype=torch.int64)
