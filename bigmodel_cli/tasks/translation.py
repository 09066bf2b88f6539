"""Texts to texts. Shapes: B batch, S source tokens, T target tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bigmodel_cli.core.registry import tasks
from bigmodel_cli.core.special_tokens import PAD
from bigmodel_cli.core.tasks import Forward, Predictions
from bigmodel_cli.core.text_files import read_lines
from bigmodel_cli.core.tokens import encode_padded, token_id_map, tokenizer
from bigmodel_cli.core.types import Batch, LossSum, SampleKey, Source, TextSpec
from bigmodel_cli.tasks.beam import beam_search

BEAMS = 4


@tasks.register(spec_type=TextSpec, pipeline_tag="translation")
def translation(
    spec: TextSpec, loss: Callable[[Tensor, Tensor], Tensor], augment: Callable[[Tensor, SampleKey], Tensor]
) -> Translation:
    """A target text for each source text."""
    return Translation(spec, loss)


@dataclass(frozen=True)
class Translation:
    """See :class:`EncodesTexts` in core/tasks.py. Raw batches hold source (B,S), and target (B,T) from start to end."""

    spec: TextSpec
    loss_per_token: Callable[[Tensor, Tensor], Tensor]
    token_map: tuple[int, ...] | None = None
    """The model's id for each id of the data; None where the vocabularies are equal."""
    name = "translation"
    unit = "tokens"
    unit_axis = 1
    best = ("perplexity", "min")
    inputs = ("source", "target")
    report = "translation"
    metrics = ("bleu", "chrf")

    @property
    def pad(self) -> int:
        return tokenizer(self.spec).special[PAD]

    def fit_spec(self, train: Source) -> Translation:
        return self

    def for_data(self, data: TextSpec) -> Translation:
        return replace(self, token_map=token_id_map(self.spec, data))

    def adopt(self, trained: TextSpec, data: TextSpec) -> tuple[TextSpec, list[str]]:
        return trained, [] if token_id_map(trained, data) is None else ["tokenizer: the checkpoint's, matched by name"]

    def prepare(self, batch: Batch, key: SampleKey | None = None) -> Batch:
        """source (B,S); target (B,T-1) without its last token, labels (B,T-1) without its first."""
        source, target = batch["source"].long(), batch["target"].long()
        if self.token_map is not None:
            ids = torch.tensor(self.token_map, device=source.device)
            source, target = ids[source], ids[target]
        return {"source": source, "target": target[:, :-1], "labels": target[:, 1:], "index": batch["index"]}

    def count(self, batch: Batch) -> int:
        return int((batch["target"][:, 1:] != self.pad).sum())

    def loss(self, model: Forward, batch: Batch) -> LossSum:
        losses = model(batch["source"], batch["target"], batch["labels"], self.loss_per_token)
        return LossSum(losses.sum(), (batch["labels"] != self.pad).sum())

    def _nats(self, model: Forward, batch: Batch) -> dict[str, Tensor]:
        def plain(logits: Tensor, labels: Tensor) -> Tensor:
            return F.cross_entropy(logits, labels, reduction="none")

        real = batch["labels"] != self.pad
        losses = model(batch["source"], batch["target"], batch["labels"], plain).float() * real  # exports know no fill
        return {"nats": losses.sum(1), "count": real.sum(1)}

    def outputs(self, model: Forward, batch: Batch) -> Batch:
        """Each pair's nats and tokens, (B,); the answer as ids, (B, context)."""
        answer, _ = beam_search(model, batch["source"], BEAMS, self.spec)
        filled = F.pad(answer, (0, self.spec.context - answer.shape[1]), value=self.pad)
        return {**self._nats(model, batch), "answer": filled, "index": batch["index"]}

    def evaluate(self, model: Forward, batch: Batch) -> dict[str, Tensor]:
        out = self._nats(model, batch)
        return {"loss": out["nats"].double().sum(), "count": out["count"].sum()}

    def summarise(self, sums: Mapping[str, float]) -> dict[str, float]:
        """loss in nats a target token, without label smoothing; perplexity exp(loss)."""
        loss = sums["loss"] / max(sums["count"], 1)
        return {"loss": loss, "perplexity": math.exp(min(loss, 700))}

    def read_file(self, path: Path) -> Iterator[tuple[str, Batch]]:
        """Each line of a text file, as a raw batch of one without a target."""
        for number, line in enumerate(read_lines(path), 1):
            yield f"{path}:{number}", self.encode_texts([line])

    def encode_texts(self, texts: Sequence[str]) -> Batch:
        """A raw batch of `texts` without targets."""
        nothing = torch.full((len(texts), 2), self.pad)
        return {"source": encode_padded(texts, self.spec), "target": nothing, "index": torch.arange(len(texts))}

    def predict(self, model: Forward, batch: Batch, top: int = 1) -> list[Predictions]:
        """The translation, with the geometric mean of its tokens' probabilities."""
        found, score = beam_search(model, batch["source"], BEAMS, self.spec)
        known = tokenizer(self.spec)
        pairs = zip(found.tolist(), score.exp().tolist(), strict=True)
        return [[(known.decode(ids), probability)] for ids, probability in pairs]

    def preprocessing(self) -> dict[str, Any]:
        """How another program makes ids of a text."""
        spec = self.spec
        return {"tokenizer": spec.tokenizer, "vocabulary": list(spec.vocabulary), "context": spec.context}

    def example(self, batch_size: int) -> tuple[Tensor, ...]:
        shape = (batch_size, min(self.spec.context, 32))
        return torch.ones(shape, dtype=torch.int64), torch.ones(shape, dtype=torch.int64)
