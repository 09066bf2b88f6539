"""One or several numbers per sample. Shapes: N samples, B batch, K numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor

from bigmodel_cli.core.device_constant import device_constant
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import tasks
from bigmodel_cli.core.tasks import Forward
from bigmodel_cli.core.types import Batch, ImageSpec, Source
from bigmodel_cli.metrics.intervals import measure
from bigmodel_cli.tasks.answers import output_values, scale
from bigmodel_cli.tasks.relabelled import OVER, Relabelled, inputs_of, targets_of

METRICS = ("mean_absolute_error", "root_mean_squared_error", "r2", "spearman", "loss")
"""The metrics that ``eval`` reports, and training after each epoch."""


@tasks.register(
    spec_type=ImageSpec, over=OVER, answers="numbers", default_loss="mse", pipeline_tag="tabular-regression"
)
def regression(spec: Any, loss: Callable[[Tensor, Tensor], Tensor], augment: Callable[..., Tensor]) -> Regression:
    """One or several numbers per image or text."""
    return Regression(inputs_of(spec, loss, augment))


class Regression(Relabelled):
    """See :class:`Answers` and :class:`FitsToVal` in core/tasks.py.

    The model's outputs are standardised: the loss sees (target - mean) / std of the train split. Metrics and answers
    are in the units of the data.
    """

    name = "regression"
    answers = "numbers"
    best = ("r2", "max")
    report = "numbers"
    metrics = METRICS

    def fit_labels(self, train: Source) -> Self:
        """Measure the mean and standard deviation of each target on the train split, once."""
        targets = self.in_order(targets_of(train)).double()
        if "mean" in output_values(self.spec):
            return self
        mean = targets.mean(0)
        std = targets.std(0, unbiased=False)
        constant = [name for name, s in zip(self.spec.classes, std.tolist(), strict=True) if not s > 0]
        if constant:
            what = f"{constant[0]} has one value in all {len(targets)} training samples"
            raise InputError(what, "expected a number that varies")
        values = (("mean", tuple(mean.tolist())), ("std", tuple(std.tolist())))
        return self.with_spec(self.spec.with_(outputs=values))

    def encode(self, label: Tensor) -> Tensor:
        mean, std = self._scale(label)
        return (label - mean) / std

    def _scale(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = scale(self.spec)
        return device_constant(mean, like.dtype, like.device), device_constant(std, like.dtype, like.device)

    def outputs(self, model: Forward, batch: Batch) -> Batch:
        """logits (B,K), as the model gives them; predictions and values (B,K) in the data's units; loss (B,), index."""
        logits = self.logits(model, batch)
        mean, std = (x.double() for x in self._scale(logits))
        return {
            "logits": logits,
            "predictions": logits.double() * std + mean,
            "values": batch["given"].double() if "given" in batch else batch["label"].double() * std + mean,
            "loss": self.loss_per_sample(logits, batch["label"]),
            "index": batch["index"],
        }

    def evaluate(self, model: Forward, batch: Batch) -> dict[str, Tensor]:
        out = self.outputs(model, batch)
        error = out["predictions"] - out["values"]
        return {
            "loss": out["loss"].sum(),
            "absolute": error.abs().mean(1).sum(),
            "count": torch.full((), len(error), device=error.device),
            **{f"squared {k}": column.sum() for k, column in enumerate(error.square().T)},
        }

    def summarise(self, sums: Mapping[str, float]) -> dict[str, float]:
        count = max(sums["count"], 1)
        squares = [value for name, value in sums.items() if name.startswith("squared ")]
        return {
            "loss": sums["loss"] / count,
            "mean_absolute_error": sums["absolute"] / count,
            "root_mean_squared_error": sum((s / count) ** 0.5 for s in squares) / len(squares),
        }

    def fit_to_val(self, outputs: Batch) -> Self:
        return self

    def score(self, outputs: Batch) -> dict[str, float]:
        """R2 is 0 where it is undefined, as for a single sample; the loss then decides which epoch is best."""
        found = {name: figure.value for name, figure in measure(METRICS, outputs, resamples=0).items()}
        return {"loss": found.pop("loss"), "r2": 0.0, **found}
