"""Labelled texts. Shapes: B batch, T tokens."""

from __future__ import annotations

import functools
import hashlib
import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

import torch
from pydantic import Field
from torch import Tensor

from bigmodel_cli.core.errors import InputError, shorten
from bigmodel_cli.core.readers.text_files import read_lines
from bigmodel_cli.core.registry import data, tokenizers
from bigmodel_cli.core.special_tokens import PAD, SPECIALS
from bigmodel_cli.core.tokenizers.tokens import encode_truncated, tokenizer
from bigmodel_cli.core.types import Batch, DataBundle, TextSpec
from bigmodel_cli.data.text.counted_words import CountedWords
from bigmodel_cli.data.text.rows import TextRows, encode_rows
from bigmodel_cli.data.text.tokenizer_choice import as_text_spec, choose_tokenizer, new_tokenizer

Context = Annotated[
    int | None,
    Field(
        ge=2,
        le=1 << 16,
        description="tokens per text; longer ones are cut; null: the checkpoint's, else of the longest text, 64 to 512",
    ),
]
SHORTEST, LONGEST = 64, 512
"""The context that is chosen for texts."""
LOOKED_AT = 256  # texts, the longest by their characters
Vocabulary = Annotated[
    str,
    Field(
        description="wordpunct, word, char, byte, gpt2, or a tokenizer.json; auto: the checkpoint's, or wordpunct",
        min_length=1,
    ),
]
WORDS = "wordpunct"
"""Where no tokenizer is asked for: on titles of films it is better than ``word`` (benchmarks/RESULTS-labels.md)."""
FOLDS = 10


class LabelledTexts:
    """One split: encoded texts, their `lengths` in tokens, `labels` (n,) int64. A batch is padded to its longest."""

    def __init__(self, rows: TextRows, labels: Tensor, spec: TextSpec, split: str) -> None:
        self.rows, self.labels, self.split = rows, labels, split
        self.groups, self.contents, self.lengths = rows.groups, rows.contents, rows.lengths
        self.fill = tokenizer(spec).special.get(PAD, 0)

    def __len__(self) -> int:
        return len(self.labels)

    def gather(self, indices: Tensor) -> Batch:
        rows = [self.rows[i] for i in indices.tolist()]
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.fill)
        return {"tokens": tokens, "label": self.labels[indices], "index": indices}

    def name(self, index: int) -> str:
        return f"{self.split}[{index}] {self.rows.head(index)}"


class LabelledSplit(Protocol):
    """The texts of a split, which may be read again from their file each time, and their labels."""

    @property
    def labels(self) -> Sequence[int]: ...

    def texts(self) -> Iterable[tuple[str, str | None]]:
        """Each text and its group, if it has one; see :func:`bigmodel_cli.data.text.rows.encode_rows`."""
        ...


@dataclass(frozen=True)
class InMemory:
    """A :class:`LabelledSplit` of texts that are held in memory."""

    all: Sequence[str]
    labels: Sequence[int]

    def texts(self) -> Iterable[tuple[str, str | None]]:
        return ((text, None) for text in self.all)


def build_labelled(
    splits: Mapping[str, LabelledSplit],
    classes: Sequence[str],
    tokens: str,
    like: TextSpec | None,
    context: int | None,
    root: Path,
    notes: Sequence[str] = (),
    digest: str | None = None,
) -> DataBundle:
    """Build the bundle from the texts and labels of each split. A new vocabulary comes from the train split only.

    `digest` is that of :func:`digest_of`, if it is known.
    """
    notes = list(notes)
    words = _new_words(splits, tokens, like, context)
    known = text_spec(splits, tokens, like, context, root) if words is None else _spec_of(words, context)
    spec = known.with_(classes=tuple(classes))
    counted = {} if words is None else {"train": words}

    @functools.cache
    def load(split: str) -> LabelledTexts:
        part = splits[split]
        if split in counted:
            rows = counted.pop(split).rows(spec.vocabulary, spec.context)
        else:
            rows = encode_rows(part.texts(), spec, f"encoding {split}", len(part.labels))
        if len(rows) != len(part.labels):
            raise InputError(f"{split}: {len(rows)} texts now", f"it had {len(part.labels)} when the run began")
        notes.extend(cut_note(split, rows.cut, len(rows), spec))
        return LabelledTexts(rows, torch.tensor(part.labels, dtype=torch.int64), spec, split)

    loaders = {split: functools.partial(load, split) for split in splits}
    return DataBundle(spec, loaders, digest or digest_of(splits), notes)


def _new_words(
    splits: Mapping[str, LabelledSplit], tokens: str, like: TextSpec | None, context: int | None
) -> CountedWords | None:
    """The words of the train split, where a new vocabulary of words is wanted."""
    kind = WORDS if tokens == "auto" else tokens
    split = tokenizers.get(kind).meta.get("split") if kind in tokenizers.found else None
    if like is not None or split is None or "train" not in splits:
        return None
    train = splits["train"]
    return CountedWords(train.texts(), context or LONGEST, kind, split, len(train.labels))


def _spec_of(words: CountedWords, context: int | None) -> TextSpec:
    return TextSpec(words.kind, words.vocabulary(), context or min(LONGEST, max(SHORTEST, words.longest)))


def untrained_note(splits: Mapping[str, LabelledSplit], classes: Sequence[str]) -> list[str]:
    """A note on the `classes` that only samples of val or test have: a model cannot learn them."""
    if "train" not in splits:
        return []
    learned = set(splits["train"].labels)
    absent = [name for i, name in enumerate(classes) if i not in learned]
    return [f"no training sample has the class {shorten(absent)}"] if absent else []


def cut_note(split: str, cut: int, total: int, spec: TextSpec, what: str = "texts") -> list[str]:
    """A note that `cut` of the `total` texts of a split are longer than the context."""
    if not cut:
        return []
    return [f"{split}: {cut:,} of {total:,} {what} are longer than data.context = {spec.context} tokens, and cut there"]


def text_spec(
    splits: Mapping[str, LabelledSplit], tokens: str, like: TextSpec | None, context: int | None, root: Path
) -> TextSpec:
    """The tokenizer named `tokens`, with a new vocabulary from the train split where it needs one.

    Without a `context`, it is that of `like`. Published weights often have a long one, so that theirs, as without any
    `like`, is as long as the longest text of train, up to LONGEST.
    """
    if context is None and like is not None and like.conventions is None:
        context = like.context
    most = min(like.context, LONGEST) if like is not None else LONGEST
    spec = _with_vocabulary(splits, tokens, like, context or most, root)
    if context is not None:
        return spec
    found = splits["train" if "train" in splits else min(splits)].texts()
    longest = heapq.nlargest(LOOKED_AT, (text for text, _ in found), key=len)
    lengths = (len(encode_truncated(text, spec, framed=True)) for text in longest)
    return spec.with_(context=min(most, max(SHORTEST, *lengths)))


def _with_vocabulary(
    splits: Mapping[str, LabelledSplit], tokens: str, like: TextSpec | None, context: int, root: Path
) -> TextSpec:
    tokens = WORDS if (tokens, like) == ("auto", None) else tokens
    if tokens not in tokenizers.found or "new_vocabulary" not in tokenizers.found[tokens].meta:
        return choose_tokenizer(tokens, like, context, root)
    if "train" not in splits:
        what = f"no train split, only {', '.join(sorted(splits))}"
        raise InputError(what, "a new vocabulary comes from train", "evaluate it: bigmodel eval CKPT --data ...")
    train = (text for text, _ in splits["train"].texts())
    return new_tokenizer(tokens, train, SPECIALS, context)


def digest_of(splits: Mapping[str, LabelledSplit]) -> str:
    """SHA-256 over the texts and labels, as of the ``repr`` of a list of (texts, labels); none of it is held."""
    total = hashlib.sha256(b"[")
    for number, split in enumerate(sorted(splits)):
        total.update(b", ([" if number else b"([")
        for i, (text, _) in enumerate(splits[split].texts()):
            total.update(((", " if i else "") + repr(text)).encode("utf-8", "surrogatepass"))
        total.update(f"], {list(splits[split].labels)!r})".encode())
    total.update(b"]")
    return total.hexdigest()


@data.register("rt-polarity", task="text_classification", files=("rt-polarity.pos",))
def rt_polarity(
    root: Path, like: TextSpec | None = None, *, context: Context = None, tokenizer: Vocabulary = "auto"
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
    held = {split: InMemory(*both) for split, both in splits.items()}
    if (tokenizer, like) == ("auto", None):
        tokenizer = "word"  # blanks stand around the marks already; val accuracy is 79.7%, with wordpunct 78.5%
    return build_labelled(held, ("negative", "positive"), tokenizer, as_text_spec(like), context, root)
