"""The vocabulary of words of a split and its encoded texts, in one pass over them. Shapes: N texts, T tokens, V words.

Each word has a code in the order in which words are met, and a text is kept as codes; once the vocabulary is known,
a table turns codes into ids. The memory is that of the codes that may be kept, and of the different words.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterable
from itertools import chain, islice
from typing import Any

import numpy as np

from bigmodel_cli.core.special_tokens import SPECIALS, UNKNOWN
from bigmodel_cli.core.tokenizers.word import LEAST, MOST_WORDS, Split
from bigmodel_cli.data.text.rows import NO_TOKENS, Names, TextRows, head_of
from bigmodel_cli.data.thread_map import REPORT_EVERY, report_progress

MOST_CHUNKS = 1 << 20  # that are held
CHUNK = 1 << 20  # codes that are counted at once
EMPTY, END = -1, -2  # the code in a text without words, and that between two texts
BETWEEN = "A"
"""Stands between texts that are divided as one; no text in lower case has it."""
BATCH = 256  # texts


class _Chunks(dict[str, tuple[int, ...]]):
    """The codes of the words in a chunk, which white space surrounds; most chunks of a text have occurred before."""

    def __init__(self, split: Split) -> None:
        super().__init__({BETWEEN: (END,)})
        self.split = split
        self.words: dict[str, int] = {}

    def __missing__(self, chunk: str) -> tuple[int, ...]:
        if len(self) >= MOST_CHUNKS:
            self.clear()
            self[BETWEEN] = (END,)
        words = self.words
        codes = self[chunk] = tuple([words.setdefault(word, len(words)) for word in self.split(chunk)])
        return codes


class CountedWords:
    """One pass over (text, group) pairs, which keeps at most `most` words of each, divided by `split`.

    `kind` is the tokenizer that `split` belongs to. `total` is for the progress bar.
    """

    def __init__(
        self, texts: Iterable[tuple[str, str | None]], most: int, kind: str, split: Split, total: int = 0
    ) -> None:
        self.kind, self.most, chunks = kind, most, _Chunks(split)
        self._code = chunks.words
        self._kept, self._lengths, self._rest = array("i"), array("i"), array("i")
        self._heads, self._head_ends, self._names = bytearray(), array("q"), Names()
        count, reported, left = 0, time.monotonic(), iter(texts)
        while batch := list(islice(left, BATCH)):
            self._add([text for text, _ in batch], chunks)
            for text, group in batch:
                self._names.add(text, group)
            count += len(batch)
            if time.monotonic() - reported > REPORT_EVERY:
                reported = time.monotonic()
                report_progress("counting words", min(count, total - 1), total)
        self._counts = _count(self._kept, len(self._code)) + _count(self._rest, len(self._code))

    def _add(self, texts: list[str], chunks: _Chunks) -> None:
        """Keep the words of `texts`, which are divided as one."""
        joined = f" {BETWEEN} ".join([text.lower() for text in texts]).split()
        codes = np.fromiter(chain.from_iterable(map(chunks.__getitem__, joined)), np.int32)
        ends = np.flatnonzero(codes == END)
        lengths = np.diff(ends, prepend=-1, append=len(codes)) - 1
        codes = codes[codes != END]
        if lengths.max() > self.most:
            beyond = np.arange(len(codes)) - np.repeat(lengths.cumsum() - lengths, lengths) >= self.most
            self._rest.frombytes(codes[beyond].tobytes())
            codes = codes[~beyond]
        if not lengths.all():
            held = np.minimum(lengths, self.most)
            codes = np.insert(codes, held.cumsum()[lengths == 0], EMPTY)
        self._kept.frombytes(codes.tobytes())
        self._lengths.frombytes(lengths.astype(np.int32).tobytes())
        heads = [head_of(text) for text in texts]
        self._head_ends.frombytes((len(self._heads) + np.cumsum(list(map(len, heads)))).astype(np.int64).tobytes())
        self._heads += b"".join(heads)

    @property
    def longest(self) -> int:
        """The most words of a text."""
        return max(self._lengths, default=0)

    def vocabulary(self) -> tuple[str, ...]:
        """As :func:`bigmodel_cli.core.tokenizers.word.word_vocabulary` gives it for these texts."""
        often = self._counts >= LEAST
        counts = self._counts.tolist()
        words = [(-counts[i], word) for (word, i), kept in zip(self._code.items(), often.tolist(), strict=True) if kept]
        words.sort()
        return (*SPECIALS, *[word for _, word in words if word not in SPECIALS][:MOST_WORDS])

    def rows(self, vocabulary: tuple[str, ...], context: int) -> TextRows:
        """The texts as ids of `vocabulary`, each cut to `context` words. What was counted is used up.

        `context` is at most the number of words that were kept.
        """
        ids = {word: i for i, word in enumerate(vocabulary) if word not in SPECIALS}
        unknown = vocabulary.index(UNKNOWN)
        table = np.fromiter((ids.get(word, unknown) for word in self._code), np.int32, len(self._code))
        table = np.append(table, np.int32(NO_TOKENS[0]))  # that of EMPTY
        kept = np.frombuffer(self._kept, np.int32)
        for start in range(0, len(kept), CHUNK):  # in place, so that the tokens are in memory once
            kept[start : start + CHUNK] = table[kept[start : start + CHUNK]]
        lengths = np.frombuffer(self._lengths, np.int32)
        held = np.clip(lengths, 1, self.most).astype(np.int64)
        ends, tokens = array("q"), self._kept
        ends.frombytes(np.minimum(held, context).cumsum().tobytes())
        if (held > context).any():
            within = np.arange(len(kept)) - np.repeat(held.cumsum() - held, held)
            tokens = array("i", kept[within < context].tobytes())
        cut = int((lengths > context).sum())
        names = self._names
        return TextRows(tokens, ends, bytes(self._heads), self._head_ends, names.groups, names.contents, cut)


def _count(codes: array[int], different: int) -> np.ndarray[Any, Any]:
    """(V,) how often each of the `different` codes occurs; EMPTY is not counted."""
    found = np.zeros(different + 1, np.int64)
    for start in range(0, len(codes), CHUNK):
        found += np.bincount(np.frombuffer(codes[start : start + CHUNK], np.int32) + 1, minlength=different + 1)
    return found[1:]
