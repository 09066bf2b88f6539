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
from torch.nn.utils.rnn import pad_sequence

from bigmodel_cli.core.device_constant import device_constant
from bigmodel_cli.core.readers.text_samples import AS_FOUND, Reading, read_texts
from bigmodel_cli.core.registry import tasks
from bigmodel_cli.core.special_tokens import END, PAD
from bigmodel_cli.core.tasks import CUT, EMPTY, Forward, Predictions
from bigmodel_cli.core.tokenizers.framing import conventions, encode_source, source_is_cut
from bigmodel_cli.core.tokenizers.tokens import describe_tokenizer, token_id_map, tokenizer
from bigmodel_cli.core.types import Batch, LossSum, SampleKey, Source, TextSpec
from bigmodel_cli.tasks.beam import beam_search

BEAMS, MOST_BEAMS = 4, 16
LR_OF_PUBLISHED = 3e-4
"""Peak rate of AdamW for published weights: the upper of T5's usual two, and that at which Marian's are trained. Pairs
are short: at a classifier's 5e-5, 200 steps leave much to learn of another style (benchmarks/RESULTS-text.md)."""


@tasks.register(
    spec_type=TextSpec,
    augments=False,
    pipeline_tag="translation",
    predicts_tokens=True,
    lr_of_published=LR_OF_PUBLISHED,
)
def translation(
    spec: TextSpec, loss: Callable[[Tensor, Tensor], Tensor], augment: Callable[[Tensor, SampleKey], Tensor]
) -> Translation:
    """A target text for each source text."""
    return Translation(spec, loss)


@dataclass(frozen=True)
class Translation:
    """See :class:`EncodesTexts` in core/tasks.py.

    Raw batches hold source (B,S) and target (B,T), framed by start and end tokens.
    """

    spec: TextSpec
    loss_per_token: Callable[[Tensor, Tensor], Tensor]
    token_map: tuple[int, ...] | None = None
    """The model's token id for each id of the data. None if the vocabularies are equal."""
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

    @property
    def beams(self) -> int:
        """How many beams decode: as many as the owners of published weights set, else BEAMS."""
        return min(max(int(dict(conventions(self.spec).generation).get("num_beams", BEAMS)), 1), MOST_BEAMS)

    def fit_spec(self, train: Source) -> Translation:
        return self

    def for_data(self, data: TextSpec) -> Translation:
        return replace(self, token_map=token_id_map(self.spec, data))

    def adopt(self, trained: TextSpec, data: TextSpec) -> tuple[TextSpec, list[str]]:
        return trained, [] if token_id_map(trained, data) is None else ["tokenizer: the checkpoint's, matched by name"]

    def prepare(self, batch: Batch, key: SampleKey | None = None) -> Batch:
        """Prepare source (B,S), target (B,T-1) without its last token, and labels (B,T-1) without the first."""
        source, target = batch["source"].long(), batch["target"].long()
        if self.token_map is not None:
            ids = device_constant(self.token_map, torch.int64, source.device)
            source, target = ids[source], ids[target]
        empty = batch.get(EMPTY, torch.zeros_like(batch["index"], dtype=torch.bool))
        labels = target[:, 1:]
        return {"source": source, "target": target[:, :-1], "labels": labels, "index": batch["index"], EMPTY: empty}

    def count(self, batch: Batch) -> int:
        return int((batch["target"][:, 1:] != self.pad).sum())

    def loss(self, model: Forward, batch: Batch) -> LossSum:
        losses = model(batch["source"], batch["target"], batch["labels"], self.loss_per_token)
        return LossSum(losses.sum(), (batch["labels"] != self.pad).sum())

    def _nats(self, model: Forward, batch: Batch) -> dict[str, Tensor]:
        def per_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
            return F.cross_entropy(logits, labels, reduction="none")

        is_token = batch["labels"] != self.pad
        losses = model(batch["source"], batch["target"], batch["labels"], per_token_loss).float()
        losses = losses * is_token  # exported models do not mask padding
        return {"nats": losses.sum(1), "count": is_token.sum(1)}

    def outputs(self, model: Forward, batch: Batch) -> Batch:
        """Return the loss in nats and the tokens of each pair, (B,), and the translation as token ids, (B, context).

        ``unfinished`` (B,) is True where the translation met its limit.
        """
        answer, _ = beam_search(model, batch["source"], self.beams, self.spec)
        unfinished = ~(answer == tokenizer(self.spec).special[END]).any(1)
        padded = F.pad(answer, (0, self.spec.context - answer.shape[1]), value=self.pad)
        return {**self._nats(model, batch), "answer": padded, "unfinished": unfinished, "index": batch["index"]}

    def evaluate(self, model: Forward, batch: Batch) -> dict[str, Tensor]:
        out = self._nats(model, batch)
        return {"loss": out["nats"].double().sum(), "count": out["count"].sum()}

    def summarise(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Return the loss in nats per target token, without label smoothing, and perplexity exp(loss)."""
        loss = sums["loss"] / max(sums["count"], 1)
        return {"loss": loss, "perplexity": math.exp(min(loss, 700))}

    def read_file(self, path: Path, how: Reading = AS_FOUND) -> Iterator[tuple[str, Batch]]:
        """Yield each line of a text file, or each row of a table, as a raw batch of one without a target."""
        for name, text in read_texts(path, "source", how):
            yield name, self.encode_texts([text])

    def encode_texts(self, texts: Sequence[str]) -> Batch:
        """Encode `texts` as a raw batch without targets."""
        ids = [encode_source(text, self.spec) or [self.pad] for text in texts]
        source = pad_sequence([torch.tensor(row) for row in ids], True, self.pad)
        cut = [source_is_cut(text, len(row), self.spec) for text, row in zip(texts, ids, strict=True)]
        return {
            "source": source,
            "target": torch.full((len(texts), 2), self.pad),
            "index": torch.arange(len(texts)),
            EMPTY: torch.tensor([not text.strip() for text in texts]),
            CUT: torch.tensor(cut),
        }

    def predict(self, model: Forward, batch: Batch, top: int = 1) -> list[Predictions]:
        """Return the translation of each text, with the geometric mean of its token probabilities.

        That of an empty text is empty.
        """
        translations, score = beam_search(model, batch["source"], self.beams, self.spec)
        vocabulary = tokenizer(self.spec)
        rows = zip(translations.tolist(), score.exp().tolist(), batch[EMPTY].tolist(), strict=True)
        return [[("", 1.0) if empty else (vocabulary.decode(ids), p)] for ids, p, empty in rows]

    def preprocessing(self) -> dict[str, Any]:
        """Describe the preprocessing for other programs."""
        spec = self.spec
        return {**describe_tokenizer(spec), **({"conventions": spec.conventions.to_dict()} if spec.conventions else {})}

    def example(self, batch_size: int) -> tuple[Tensor, ...]:
        shape = (batch_size, min(self.spec.context, 32))
        return torch.ones(shape, dtype=torch.int64), torch.ones(shape, dtype=torch.int64)
