"""Labelled texts. Shapes: B batch, T tokens."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import data
from bigmodel_cli.core.special_tokens import PAD, SPECIALS
from bigmodel_cli.core.text_files import read_lines
from bigmodel_cli.core.tokens import char_vocabulary, encode_padded, tokenizer, word_vocabulary
from bigmodel_cli.core.types import Batch, DataBundle, TextSpec
from bigmodel_cli.data.text.tokenizer_choice import as_text_spec, choose_tokenizer

Context = Annotated[int, Field(ge=2, le=1 << 16, description="tokens per text; longer ones are truncated")]
Vocabulary = Annotated[
    str,
    Field(description="word, char, byte, gpt2, or a tokenizer.json; auto: the checkpoint's, or word", min_length=1),
]
FOLDS = 10


class LabelledTexts:
    """One split: `texts` and `labels` (n,) int64. A batch is padded to its longest text."""

    def __init__(self, texts: Sequence[str], labels: Sequence[int], spec: TextSpec, split: str) -> None:
        self.texts, self.labels, self.split = texts, torch.tensor(labels), split
        self.rows = [encode_padded([text], spec, framed=True)[0].int() for text in texts]
        self.fill = tokenizer(spec).special.get(PAD, 0)

    def __len__(self) -> int:
        return len(self.texts)

    def gather(self, indices: Tensor) -> Batch:
        rows = [self.rows[i] for i in indices.tolist()]
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.fill)
        return {"tokens": tokens, "label": self.labels[indices], "index": indices}

    def name(self, index: int) -> str:
        text = self.texts[index]
        return f"{self.split}[{index}] {text[:60]}{'…' * (len(text) > 60)}"


TextSplits = Mapping[str, tuple[list[str], list[int]]]


def build_labelled(
    splits: TextSplits,
    classes: Sequence[str],
    tokens: str,
    like: TextSpec | None,
    context: int,
    root: Path,
    notes: Sequence[str] = (),
) -> DataBundle:
    """Build the bundle from (texts, labels) by split. A new vocabulary comes from the train split only."""
    train = splits["train"][0]
    tokens = "word" if (tokens, like) == ("auto", None) else tokens
    if tokens in ("word", "char"):
        vocabulary = word_vocabulary(train, least=2) if tokens == "word" else char_vocabulary(train, SPECIALS)
        spec = TextSpec(tokens, vocabulary, context, tuple(classes))
    else:
        spec = choose_tokenizer(tokens, like, context, root).with_(classes=tuple(classes))

    @functools.cache
    def load(split: str) -> LabelledTexts:
        return LabelledTexts(*splits[split], spec, split)

    digest = hashlib.sha256(repr([splits[s] for s in sorted(splits)]).encode("utf-8", "surrogatepass")).hexdigest()
    return DataBundle(spec, {split: functools.partial(load, split) for split in splits}, digest, notes)


@data.register("rt-polarity", task="text_classification", files=("rt-polarity.pos",))
def rt_polarity(
    root: Path, like: TextSpec | None = None, *, context: Context = 64, tokenizer: Vocabulary = "auto"
) -> DataBundle:
    """10,662 sentences from film reviews, positive or negative (Pang and Lee 2005); every tenth line is test.

    The data comes without splits. In each file, lines 0, 10, 20, ... (from 0) are test,
    lines 1, 11, 21, ... are val, and the rest are train.
    """
    splits: dict[str, tuple[list[str], list[int]]] = {s: ([], []) for s in ("train", "val", "test")}
    for label, name in enumerate(("neg", "pos")):
        file = root / "rt-polarity" / f"rt-polarity.{name}"
        if not file.is_file():  # no download, since no mirror of the two files has a published checksum
            hint = "unpack rt-polaritydata.tar.gz of https://www.cs.cornell.edu/people/pabo/movie-review-data/ there"
            raise InputError(f"{file}: no such file", "it is not downloaded", hint)
        lines = read_lines(file, "latin-1")  # the files' encoding; they are not valid UTF-8
        if len(lines) < FOLDS:
            raise InputError(f"{file}: {len(lines)} lines", "expected 5,331")
        for i, line in enumerate(lines):
            texts, labels = splits[{0: "test", 1: "val"}.get(i % FOLDS, "train")]
            texts.append(line)
            labels.append(label)
    return build_labelled(splits, ("negative", "positive"), tokenizer, as_text_spec(like), context, root)
