"""The next token, everywhere in a text. Shapes: B batch, T tokens (the context), V vocabulary."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_cli.core.keyed_random import uniform
from bigmodel_cli.core.registry import tasks
from bigmodel_cli.core.tokens import tokenizer
from bigmodel_cli.core.types import Batch, LossSum, SampleKey, Source, TextSpec

NOTHING = -100  # a target from which nothing is learned


@tasks.register(kind="text")
def language_modeling(
    spec: TextSpec, loss: Callable[[Tensor, Tensor], Tensor], augment: Callable[[Tensor, SampleKey], Tensor]
) -> LanguageModeling:
    """The next token of a text."""
    return LanguageModeling(spec, loss)


@dataclass(frozen=True)
class LanguageModeling:
    """See :class:`bigmodel_cli.core.types.Task`."""

    spec: TextSpec
    loss_per_token: Callable[[Tensor, Tensor], Tensor]
    places: tuple[int, ...] | None = None
    """The model's id for each id of the data, -1 where it has none; None where the vocabularies are equal."""
    name = "language_modeling"
    unit = "tokens"
    best = ("perplexity", "min")

    def fit_spec(self, train: Source) -> LanguageModeling:
        return self

    def for_data(self, data: TextSpec) -> LanguageModeling:
        """The task on data with its own vocabulary: tokens are matched by *name*, never by id."""
        if (data.tokenizer, data.vocabulary) == (self.spec.tokenizer, self.spec.vocabulary):
            return replace(self, places=None)
        ours = {name: i for i, name in enumerate(tokenizer(self.spec).tokens())}
        return replace(self, places=tuple(ours.get(name, -1) for name in tokenizer(data).tokens()))

    def adopt(self, trained: TextSpec, data: TextSpec) -> tuple[TextSpec, list[str]]:
        """The trained tokenizer and context stay."""
        same = (trained.tokenizer, trained.vocabulary) == (data.tokenizer, data.vocabulary)
        return trained, [] if same else ["tokenizer: the checkpoint's"]

    def prepare(self, batch: Batch, key: SampleKey | None = None) -> Batch:
        """tokens (B,2T) -> tokens and targets (B,T): with a `key` from anywhere in the first half, else its start."""
        raw, context = batch["tokens"].long(), self.spec.context
        if self.places is not None:
            raw = torch.tensor(self.places, device=raw.device)[raw]
        if key is None:
            window = raw[:, : context + 1]
            late = torch.arange(context, device=raw.device) >= batch["length"][:, None]
            targets = window[:, 1:].masked_fill(late, NOTHING)
        else:
            # Windows shift by a new offset each epoch: every start is met, as if windows were drawn at random.
            offset = (uniform(key, 0) * context).long()
            window = raw.gather(1, offset[:, None] + torch.arange(context + 1, device=raw.device))
            targets = window[:, 1:]
        targets = targets.masked_fill(targets < 0, NOTHING)
        return {"tokens": window[:, :-1].clamp(min=0), "targets": targets, "index": batch["index"]}

    def count(self, batch: Batch) -> int:
        return len(batch["index"]) * self.spec.context

    def loss(self, model: nn.Module, batch: Batch) -> LossSum:
        losses = model(batch["tokens"], batch["targets"], self.loss_per_token)
        return LossSum(losses.sum(), losses.numel())

    def outputs(self, model: nn.Module, batch: Batch) -> Batch:
        """Each window's sums, (B,): loss in nats, tokens, bytes of text."""
        losses = model(batch["tokens"], batch["targets"], self.loss_per_token).float()
        known = batch["targets"] >= 0
        lengths = torch.tensor(tokenizer(self.spec).byte_lengths(), device=losses.device)
        size = lengths[batch["targets"].clamp(min=0)] * known
        return {"loss": losses.sum(1), "count": known.sum(1), "bytes": size.sum(1), "index": batch["index"]}

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return {k: v.double().sum() for k, v in self.outputs(model, batch).items() if k != "index"}

    def summarise(self, sums: Mapping[str, float]) -> dict[str, float]:
        """loss in nats a token; perplexity exp(loss); bits a byte of UTF-8, which compares tokenizers."""
        loss = sums["loss"] / max(sums["count"], 1)
        bits = sums["loss"] / math.log(2) / max(sums["bytes"], 1)
        return {"loss": loss, "perplexity": math.exp(min(loss, 700)), "bits_per_byte": bits}

    def preprocessing(self) -> dict[str, Any]:
        """How another program makes ids of a text."""
        return {
            "tokenizer": self.spec.tokenizer,
            "vocabulary": list(self.spec.vocabulary),
            "context": self.spec.context,
        }

    def example(self, batch_size: int) -> tuple[Tensor, ...]:
        return (torch.zeros(batch_size, self.spec.context, dtype=torch.int64),)
