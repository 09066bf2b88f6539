"""Tokenizers: text to ids and back, built from the plain values in a TextSpec.

- byte: the 256 byte values and ``<end>``; it encodes any text
- char: the characters of the training text
- word: the lower-case words of the training text, split at white space; other words are ``<unk>``
- bpe: byte pair encoding (Sennrich et al. 2016), trained and run by Hugging Face's tokenizers
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from bigmodel_cli.core.bpe_tokenizer import BPETokenizer as BPETokenizer
from bigmodel_cli.core.bpe_tokenizer import require_package as require_package
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.special_tokens import END, PAD, SPECIALS, UNKNOWN
from bigmodel_cli.core.specs import TextSpec
from bigmodel_cli.core.tokenizer_files import MAX_TOKENS

if TYPE_CHECKING:
    from torch import Tensor


class Tokenizer(Protocol):
    """`size` is the number of ids; `special` maps the special tokens that exist to their ids."""

    size: int
    special: dict[str, int]

    def encode(self, text: str) -> Sequence[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def byte_lengths(self) -> list[int]:
        """The number of UTF-8 bytes of each id; 0 for special tokens."""
        ...

    def tokens(self) -> Sequence[str]:
        """The name of each id. Tokens of two vocabularies are the same if their names are equal."""
        ...


class ByteTokenizer:
    size = 257
    special: dict[str, int] = {END: 256}  # noqa: RUF012

    def encode(self, text: str) -> Sequence[int]:
        return text.encode("utf-8", "surrogatepass")

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", "replace")

    def byte_lengths(self) -> list[int]:
        return [1] * 256 + [0]

    def tokens(self) -> Sequence[str]:
        return [f"{i:#04x}" for i in range(256)] + [END]


class CharTokenizer:
    def __init__(self, vocabulary: Sequence[str]) -> None:
        self.vocabulary, self.size = vocabulary, len(vocabulary)
        self.ids = {token: i for i, token in enumerate(vocabulary)}
        self.special = {s: self.ids[s] for s in SPECIALS if s in self.ids}

    def encode(self, text: str) -> Sequence[int]:
        try:
            return [self.ids[c] for c in text]
        except KeyError as error:
            if UNKNOWN in self.ids:
                return [self.ids.get(c, self.ids[UNKNOWN]) for c in text]
            what = f"the character {error.args[0]!r} is not in the vocabulary"
            raise InputError(what, f"expected some of the {self.size} characters the model was trained on") from None

    def decode(self, ids: Sequence[int]) -> str:
        return "".join("" if self.vocabulary[i] in self.special else self.vocabulary[i] for i in ids)

    def byte_lengths(self) -> list[int]:
        return [0 if t in self.special else len(t.encode("utf-8", "surrogatepass")) for t in self.vocabulary]

    def tokens(self) -> Sequence[str]:
        return self.vocabulary


class WordTokenizer:
    def __init__(self, vocabulary: Sequence[str]) -> None:
        self.vocabulary, self.size = vocabulary, len(vocabulary)
        self.ids = {token: i for i, token in enumerate(vocabulary)}
        self.special = {s: self.ids[s] for s in SPECIALS if s in self.ids}
        self.known = {token: i for token, i in self.ids.items() if token not in self.special}

    def encode(self, text: str) -> Sequence[int]:
        return list(map(self.known.get, split_words(text), itertools.repeat(self.special[UNKNOWN])))

    def decode(self, ids: Sequence[int]) -> str:
        hidden = {i for token, i in self.special.items() if token != UNKNOWN}
        return " ".join(self.vocabulary[i] for i in ids if i not in hidden)

    def byte_lengths(self) -> list[int]:
        return [0 if t in self.special else len(t.encode()) + 1 for t in self.vocabulary]

    def tokens(self) -> Sequence[str]:
        return self.vocabulary


def encode_sized(known: Tokenizer, text: str) -> tuple[list[int], list[int]]:
    """The ids of `text`, and the bytes of text that each stands for."""
    if isinstance(known, BPETokenizer):
        found, sizes = known.encode_sized(text)
        return list(found), sizes.tolist()
    ids, lengths = list(known.encode(text)), known.byte_lengths()
    return ids, [lengths[i] for i in ids]


def encode_many(known: Tokenizer, texts: Sequence[str]) -> list[Sequence[int]]:
    """The ids of each text. BPE encodes them as one batch, which is faster."""
    if isinstance(known, BPETokenizer):
        return [found.ids for found in known.inner.encode_batch_fast(list(texts), add_special_tokens=False)]
    return [known.encode(text) for text in texts]


@functools.lru_cache(maxsize=8)
def _build(kind: str, vocabulary: tuple[str, ...], special: tuple[tuple[str, int], ...]) -> Tokenizer:
    if kind == "byte":
        return ByteTokenizer()
    if not vocabulary or not all(isinstance(token, str) for token in vocabulary):
        raise InputError(f"a {kind} tokenizer without its vocabulary", "expected a list of tokens")
    if kind == "bpe":
        return BPETokenizer(vocabulary[0], dict(special))
    if len(set(vocabulary)) != len(vocabulary) or len(vocabulary) > MAX_TOKENS:
        raise InputError("a duplicate token in the vocabulary", f"expected up to {MAX_TOKENS} different ones")
    if kind == "char":
        return CharTokenizer(vocabulary)
    if kind == "word":
        if not {PAD, UNKNOWN} <= set(vocabulary):
            raise InputError("a word tokenizer without <pad> and <unk>", "expected both")
        return WordTokenizer(vocabulary)
    raise InputError(f"unknown tokenizer {kind!r}", "one of byte, char, word, bpe")


def tokenizer(spec: TextSpec) -> Tokenizer:
    """The tokenizer that `spec` describes.

    Raises:
        InputError: its kind is unknown, or its vocabulary is invalid.
        MachineError: it is BPE, and the extra ``text`` is not installed.
    """
    return _build(spec.tokenizer, spec.vocabulary, spec.conventions.special if spec.conventions else ())


def target_tokenizer(spec: TextSpec) -> Tokenizer:
    """The tokenizer of targets in translation: Marian's differs from that of sources, with the same ids."""
    own = spec.vocabulary[-1:] if spec.tokenizer == "bpe" else spec.vocabulary
    return _build(spec.tokenizer, own, spec.conventions.special if spec.conventions else ())


def split_words(text: str) -> list[str]:
    return text.lower().split()


def char_vocabulary(texts: Iterable[str], specials: Sequence[str] = ()) -> tuple[str, ...]:
    """The vocabulary of a char tokenizer: `specials`, then the characters in code point order."""
    return (*specials, *sorted(set().union(*texts)))


MOST_WORDS = 50_000


def word_vocabulary(texts: Iterable[str], least: int = 1, most: int = MOST_WORDS) -> tuple[str, ...]:
    """The vocabulary of a word tokenizer: special tokens, then up to `most` words that occur `least` times or more."""
    counts = Counter(itertools.chain.from_iterable(map(split_words, texts)))
    ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return (*SPECIALS, *[word for word, n in ranked if n >= least and word not in SPECIALS][:most])


def token_id_map(model: TextSpec, data: TextSpec) -> tuple[int, ...] | None:
    """The model's id for each id of the data, matched by name; ``<unk>`` (or -1) for tokens that the model lacks.

    None if the tokenizers are equal.

    Raises:
        InputError: the tokenizers have nothing in common.
    """
    if (model.tokenizer, model.vocabulary) == (data.tokenizer, data.vocabulary):
        return None
    known, theirs = tokenizer(model), tokenizer(data)
    ids = {name: i for i, name in enumerate(known.tokens())}
    if model.tokenizer != data.tokenizer or not (set(ids) - set(SPECIALS)) & set(theirs.tokens()):
        what = f"the data uses {data.tokenizer} tokens, the model uses {model.tokenizer}"
        raise InputError(what, "expected the same tokenizer", "--set data.tokenizer=" + model.tokenizer)
    return tuple(ids.get(name, known.special.get(UNKNOWN, -1)) for name in theirs.tokens())


def encode_truncated(text: str, spec: TextSpec, framed: bool = False) -> list[int]:
    """The ids of `text`, truncated to the context. For `framed`, see :func:`encode_padded`."""
    known = tokenizer(spec)
    if framed and isinstance(known, BPETokenizer):
        return list(known.framed(text, spec.context))
    return list(known.encode(text))[: spec.context]


def is_cut(text: str, spec: TextSpec, framed: bool = False) -> bool:
    """Whether :func:`encode_truncated` leaves out some of `text`."""
    known = tokenizer(spec)
    around = known.inner.num_special_tokens_to_add(False) if framed and isinstance(known, BPETokenizer) else 0
    return len(known.encode(text)) + around > spec.context


def encode_padded(texts: Sequence[str], spec: TextSpec, framed: bool = False) -> Tensor:
    """(B,T) int64 ids, padded at the end with ``<pad>``; T is at least 1 and at most the context.

    `framed`: add the tokenizer's own special tokens around each text, if it has any; for classification.
    """
    import torch

    rows = [encode_truncated(text, spec, framed) for text in texts]
    longest = max(1, *map(len, rows), 1)
    pad = tokenizer(spec).special.get(PAD, 0)
    return torch.tensor([row + [pad] * (longest - len(row)) for row in rows])


def train_bpe(texts: Iterable[str], size: int, specials: Sequence[str] = SPECIALS) -> str:
    """Train a byte-level BPE tokenizer of `size` tokens; returns the JSON of Hugging Face's tokenizers.

    Raises:
        MachineError: the extra ``text`` is not installed.
    """
    library = require_package("tokenizers")
    found = library.Tokenizer(library.models.BPE())
    found.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = library.decoders.ByteLevel()
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    trainer = library.trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(specials), initial_alphabet=alphabet, show_progress=False
    )
    found.train_from_iterator(texts, trainer)
    return found.to_str()  # type: ignore[no-any-return]
