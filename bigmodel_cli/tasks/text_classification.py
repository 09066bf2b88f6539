"""Texts to classes. Shapes: B batch, T tokens, K classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from bigmodel_cli.core.device_constant import device_constant
from bigmodel_cli.core.output_values import uncalibrated
from bigmodel_cli.core.readers.text_samples import AS_FOUND, Reading, read_texts
from bigmodel_cli.core.registry import tasks
from bigmodel_cli.core.special_tokens import END
from bigmodel_cli.core.tasks import CUT, EMPTY, Forward, Predictions
from bigmodel_cli.core.tokenizers.tokens import describe_tokenizer, encode_padded, is_cut, token_id_map, tokenizer
from bigmodel_cli.core.types import Batch, LossSum, SampleKey, Source, TextSpec
from bigmodel_cli.tasks import labelled
from bigmodel_cli.tasks.answers import answer_of, outputs_described


@tasks.register(spec_type=TextSpec, answers="classes", pipeline_tag="text-classification")
def text_classification(
    spec: TextSpec, loss: Callable[[Tensor, Tensor], Tensor], augment: Callable[[Tensor, SampleKey], Tensor]
) -> TextClassification:
    """One class per text."""
    return TextClassification(spec, loss, augment)


@dataclass(frozen=True)
class TextClassification:
    """See :class:`Classifies` and :class:`EncodesTexts` in core/tasks.py."""

    spec: TextSpec
    loss_per_sample: Callable[[Tensor, Tensor], Tensor]
    augment: Callable[[Tensor, SampleKey], Tensor]
    label_map: tuple[int, ...] | None = None
    token_map: tuple[int, ...] | None = None
    """The model's token id for each id of the data. None if the vocabularies are equal."""
    name = "text_classification"
    unit = "texts"
    unit_axis = None
    best = ("accuracy", "max")
    inputs = ("tokens",)
    report = "classification"
    answers = "classes"

    @property
    def metrics(self) -> tuple[str, ...]:
        return labelled.metrics_of(self.spec)

    def fit_spec(self, train: Source) -> TextClassification:
        return self

    def for_data(self, data: TextSpec) -> TextClassification:
        """Return the task for data with its own classes and vocabulary. Both are matched by *name*."""
        label_map = labelled.label_map(self.spec.classes, data.classes)
        return replace(self, label_map=label_map, token_map=token_id_map(self.spec, data))

    def with_(self, **changes: Any) -> Self:
        return replace(self, **changes)

    def adopt(self, trained: TextSpec, data: TextSpec) -> tuple[TextSpec, list[str]]:
        """Keep the trained tokenizer and context. Use the new data's classes."""
        same = set(trained.classes) == set(data.classes)
        notes = [] if token_id_map(trained, data) is None else ["tokenizer: the checkpoint's, matched by name"]
        return uncalibrated(trained if same else trained.with_(classes=data.classes)), notes

    def prepare(self, batch: Batch, key: SampleKey | None = None) -> Batch:
        """Prepare tokens (B,T), padded at the end and truncated to the context. With a `key`, augment them."""
        tokens, label = batch["tokens"].long()[:, : self.spec.context], batch["label"]
        if self.token_map is not None:
            tokens = device_constant(self.token_map, torch.int64, tokens.device)[tokens]
        if self.label_map is not None:
            label = device_constant(tuple(self.label_map), torch.int64, label.device)[label]
        return {"tokens": tokens if key is None else self.augment(tokens, key), "label": label, "index": batch["index"]}

    def count(self, batch: Batch) -> int:
        return len(batch["label"])

    def loss(self, model: Forward, batch: Batch) -> LossSum:
        logits = labelled.logits_of(model(batch["tokens"]), self.spec)
        return LossSum(self.loss_per_sample(logits, batch["label"]).sum(), len(logits))

    def outputs(self, model: Forward, batch: Batch) -> Batch:
        return labelled.outputs(model(batch["tokens"]), batch, self.loss_per_sample, self.spec)

    def evaluate(self, model: Forward, batch: Batch) -> dict[str, Tensor]:
        return labelled.sums(self.outputs(model, batch))

    def summarise(self, sums: Mapping[str, float]) -> dict[str, float]:
        return labelled.summarise(sums)

    def read_file(self, path: Path, how: Reading = AS_FOUND) -> Iterator[tuple[str, Batch]]:
        """Yield each line of a text file, or each row of a table, as a raw batch of one."""
        for name, text in read_texts(path, "text", how):
            yield name, self.encode_texts([text])

    def encode_texts(self, texts: Sequence[str]) -> Batch:
        """Encode `texts` as a raw batch without known classes."""
        tokens, indices = encode_padded(texts, self.spec, framed=True), torch.arange(len(texts))
        cut = [tokens.shape[1] == self.spec.context and is_cut(text, self.spec, framed=True) for text in texts]
        about = {CUT: torch.tensor(cut), EMPTY: torch.tensor([not text.strip() for text in texts])}
        return {"tokens": tokens, "label": torch.zeros_like(indices), "index": indices, **about}

    def predict(self, model: Forward, batch: Batch, top: int = 5) -> list[Predictions]:
        answer = answer_of(self)
        logits = labelled.logits_of(model(batch["tokens"]), self.spec)
        values = answer.values(logits.double().cpu().numpy(), self.spec)
        return [answer.choose(row, self.spec, top) for row in values]

    def preprocessing(self) -> dict[str, Any]:
        """Describe the preprocessing for other programs."""
        spec = self.spec
        known = {"conventions": spec.conventions.to_dict()} if spec.conventions else {}
        return {**describe_tokenizer(spec), **known, **outputs_described(spec)}

    def example(self, batch_size: int) -> tuple[Tensor, ...]:
        tokens = torch.ones(batch_size, self.spec.context, dtype=torch.int64)
        tokens[:, -1] = tokenizer(self.spec).special.get(END, 1)  # T5 and BART classify by the token that ends a text
        return (tokens,)
