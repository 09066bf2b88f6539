"""Next-token prediction. Shapes: B batch, T tokens (the context), V vocabulary."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bigmodel_cli.core.chat.encoding import encode_chat, has_template
from bigmodel_cli.core.device_constant import device_constant
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.keyed_random import uniform
from bigmodel_cli.core.messages import Message
from bigmodel_cli.core.registry import tasks
from bigmodel_cli.core.special_tokens import END
from bigmodel_cli.core.tasks import Forward
from bigmodel_cli.core.tokenizers.framing import conventions, encode_beginning
from bigmodel_cli.core.tokenizers.tokens import describe_tokenizer, token_id_map, tokenizer
from bigmodel_cli.core.types import Batch, LossSum, SampleKey, Source, TextSpec
from bigmodel_cli.tasks.sampling import Sampling, next_tokens
from bigmodel_cli.tasks.text_stream import TextStream

NOTHING = -100  # a target that the loss ignores


@tasks.register(
    spec_type=TextSpec,
    augments=False,
    pipeline_tag="text-generation",
    predicts_tokens=True,
    default_data="tales",
)
def language_modeling(
    spec: TextSpec, loss: Callable[[Tensor, Tensor], Tensor], augment: Callable[[Tensor, SampleKey], Tensor]
) -> LanguageModeling:
    """The next token of a text."""
    return LanguageModeling(spec, loss)


@dataclass(frozen=True)
class LanguageModeling:
    """See :class:`Generates` in core/tasks.py."""

    spec: TextSpec
    loss_per_token: Callable[[Tensor, Tensor], Tensor]
    token_map: tuple[int, ...] | None = None
    """The model's token id for each id of the data; -1 if unknown. None if the vocabularies are equal."""
    name = "language_modeling"
    unit = "tokens"
    unit_axis = 1
    best = ("perplexity", "min")
    inputs = ("tokens",)
    report = "perplexity"
    metrics = ("loss", "perplexity", "bits_per_byte")

    def fit_spec(self, train: Source) -> LanguageModeling:
        return self

    def for_data(self, data: TextSpec) -> LanguageModeling:
        """Return the task for data with its own vocabulary. Tokens are matched by *name*, never by id."""
        return replace(self, token_map=token_id_map(self.spec, data))

    def adopt(self, trained: TextSpec, data: TextSpec) -> tuple[TextSpec, list[str]]:
        """Keep the trained tokenizer and context. Use the new data's chat template if it has one."""
        notes = [] if token_id_map(trained, data) is None else ["tokenizer: the checkpoint's, matched by name"]
        return trained.with_(chat=data.chat or trained.chat), notes

    def prepare(self, batch: Batch, key: SampleKey | None = None) -> Batch:
        """Prepare tokens and targets (B,T).

        A batch with ``length`` holds windows (B,2T). With a `key`, T tokens start at a random offset in the first
        half of each window; otherwise at its beginning.

        A batch without ``length`` holds rows (B,T+1) with a fixed start. Its mask ``learn``, of the same shape, is
        False for tokens that are not targets: the prompt and the padding. ``document``, also of that shape, numbers
        packed documents. It is passed on to the model, and no document is predicted from the previous one.
        """
        raw, context = batch["tokens"].long(), self.spec.context
        if self.token_map is not None:
            raw = device_constant(self.token_map, torch.int64, raw.device)[raw]
        window, document, length, size = raw, batch.get("document"), batch.get("length"), batch.get("bytes")
        if length is not None:
            context = min(context, raw.shape[1] // 2)  # the data's windows may be shorter than the model's context
            positions = torch.arange(context + 1, device=raw.device).expand(len(raw), -1)
            if key is not None:
                # A new random offset each epoch, so that over time every start position occurs.
                positions = positions + (uniform(key, 0) * context).long()[:, None]
            window = raw.gather(1, positions)
            document = document if document is None else document.gather(1, positions)
            size = size if size is None else size.gather(1, positions)
        targets = window[:, 1 : context + 1]
        if length is not None and key is None:
            late = torch.arange(context, device=raw.device) >= length[:, None]
            targets = targets.masked_fill(late, NOTHING)
        if "learn" in batch:
            targets = targets.masked_fill(~batch["learn"][:, 1 : context + 1], NOTHING)
        targets = targets.masked_fill(targets < 0, NOTHING)
        tokens = window[:, :-1][:, :context].clamp(min=0)
        begins = conventions(self.spec).before
        if length is not None and begins:  # a window begins as every text of this model does
            tokens = torch.cat((torch.full_like(tokens[:, :1], begins[-1]), tokens[:, 1:]), 1)
        prepared = {"tokens": tokens, "targets": targets, "index": batch["index"]}
        prepared |= {"bytes": size[:, 1 : context + 1]} if size is not None else {}
        if document is None:
            return prepared
        after, document = document[:, 1 : context + 1], document[:, :-1][:, :context]
        return prepared | {"targets": targets.masked_fill(after != document, NOTHING), "document": document}

    def count(self, batch: Batch) -> int:
        if "length" in batch:
            return len(batch["index"]) * min(self.spec.context, batch["tokens"].shape[1] // 2)
        return max(1, int(batch["learn"][:, 1 : self.spec.context + 1].sum()))

    def loss(self, model: Forward, batch: Batch) -> LossSum:
        losses = model(batch["tokens"], batch["targets"], self.loss_per_token, **_document(batch))
        return LossSum(losses.sum(), (batch["targets"] != NOTHING).sum())

    def outputs(self, model: Forward, batch: Batch) -> Batch:
        """Return the sums of each window, (B,): loss in nats, tokens, bytes of text."""
        losses = model(batch["tokens"], batch["targets"], _nats, **_document(batch)).float()
        is_target = batch["targets"] >= 0
        if "bytes" in batch:  # the text's own, where the tokens' names do not tell them
            size = batch["bytes"] * is_target
        else:
            lengths = device_constant(_byte_lengths(self.spec), torch.int64, losses.device)
            size = lengths[batch["targets"].clamp(min=0)] * is_target
        return {"nats": losses.sum(1), "count": is_target.sum(1), "bytes": size.sum(1), "index": batch["index"]}

    def evaluate(self, model: Forward, batch: Batch) -> dict[str, Tensor]:
        out = self.outputs(model, batch)
        sums = {k: out[k].double().sum() for k in ("count", "bytes")}
        return {"loss": out["nats"].double().sum(), **sums}

    def summarise(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Return the loss in nats per token, perplexity exp(loss) and bits per byte.

        Bits per byte of UTF-8 are comparable across tokenizers.
        """
        loss = sums["loss"] / max(sums["count"], 1)
        bits = sums["loss"] / math.log(2) / max(sums["bytes"], 1)
        return {"loss": loss, "perplexity": math.exp(min(loss, 700)), "bits_per_byte": bits}

    def encode_prompt(self, text: str | Sequence[Message]) -> list[int]:
        """Encode a text to continue, or a conversation up to the start of the assistant's answer.

        Raises:
            InputError: a character is not in the vocabulary, or the model was not trained on conversations.
        """
        if isinstance(text, str):
            return encode_beginning(text, self.spec) or [tokenizer(self.spec).special.get(END, 0)]
        if not has_template(self.spec):
            what = "the model was not trained on conversations"
            raise InputError(what, "expected a chat template in its checkpoint", "--prompt without --chat")
        try:
            return encode_chat(text, self.spec, answer=True)[0]
        except ValueError as error:
            raise InputError(str(error)) from None

    def generate(
        self, model: nn.Module, prompts: Sequence[str | Sequence[Message]], **sampling: Any
    ) -> Iterator[list[str | None]]:
        """Yield the next piece of text for each prompt at each step; None once a text has ended.

        Raises:
            InputError: see :meth:`encode_prompt`.
        """
        vocabulary, ends = tokenizer(self.spec), set(conventions(self.spec).ends)
        ids = [self.encode_prompt(p) for p in prompts]
        if not ends and END in vocabulary.special:
            ends = {vocabulary.special[END]}
        elif not ends and not all(isinstance(p, str) for p in prompts):
            ends = {vocabulary.encode("\n")[0]}  # end of a turn if the vocabulary has no <end>
        # An answer is a text of its own; a continuation is decoded with the text that it continues.
        streams = [
            TextStream(vocabulary, row if isinstance(p, str) else ()) for p, row in zip(prompts, ids, strict=True)
        ]
        ended = [False] * len(ids)
        for new in next_tokens(model, ids, Sampling(**sampling)):
            pieces: list[str | None] = []
            for i, token in enumerate(new.tolist()):
                ended[i] = ended[i] or token in ends
                pieces.append(None if ended[i] else streams[i].add(token))
            yield pieces

    def preprocessing(self) -> dict[str, Any]:
        """Describe the preprocessing for other programs."""
        return {
            **describe_tokenizer(self.spec),
            **({"chat": list(self.spec.chat)} if self.spec.chat else {}),
            **({"conventions": self.spec.conventions.to_dict()} if self.spec.conventions else {}),
        }

    def example(self, batch_size: int) -> tuple[Tensor, ...]:
        return (torch.zeros(batch_size, self.spec.context, dtype=torch.int64),)


@functools.lru_cache(4)
def _byte_lengths(spec: TextSpec) -> tuple[int, ...]:
    return tuple(tokenizer(spec).byte_lengths())


def _document(batch: Batch) -> Batch:
    """Return the model's document argument if documents must not attend to each other."""
    return {"document": batch["document"]} if "document" in batch else {}


def _nats(logits: Tensor, targets: Tensor) -> Tensor:
    """Per-token loss in nats, without the label smoothing of training."""
    return F.cross_entropy(logits, targets, reduction="none")
