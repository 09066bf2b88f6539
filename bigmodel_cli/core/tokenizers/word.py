"""Lower-case words, split at white space; other words than those of the training text are ``<unk>``."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from bigmodel_cli.core.registry import tokenizers
from bigmodel_cli.core.special_tokens import SPECIALS, UNKNOWN
from bigmodel_cli.core.tokenizers.kind import (
    IDS,
    NAMES,
    NEEDED,
    Listed,
    Program,
    json_with_special,
    tokenizers_package,
)

MOST_WORDS = 50_000
LEAST = 2
"""How often a word of the training text must occur to be in a new vocabulary."""
WORDS = """\
special, unknown = ("<pad>", "<unk>", "<start>", "<end>"), ids["<unk>"]
tokens = [unknown if word in special else ids.get(word, unknown) for word in words]
"""
PROGRAM = Program(IDS + "words = sys.argv[1].lower().split()\n" + WORDS, NAMES)
SPACES = "9-d 1c-20 85 a0 1680 2000-200a 2028-2029 202f 205f 3000"
"""Code points at which `str.split` splits; other programs have others."""
Split = Callable[[str], list[str]]


def characters(ranges: str) -> str:
    """The inside of a character class of a regular expression, for code points in hexadecimal."""
    ends = [[re.escape(chr(int(end, 16))) for end in part.split("-")] for part in ranges.split()]
    return "".join("-".join(pair) for pair in ends)


def split_words(text: str) -> list[str]:
    return text.lower().split()


class WordTokenizer(Listed):
    """Words as `split` divides a text into them: in lower case, what the regular expression `pattern` matches."""

    separator = " "

    def __init__(self, kind: str, vocabulary: Sequence[str], split: Split, pattern: str) -> None:
        super().__init__(kind, vocabulary, NEEDED)
        self.known = {token: i for token, i in self.ids.items() if token not in self.special}
        self.split, self.pattern = split, pattern

    def encode(self, text: str) -> Sequence[int]:
        return list(map(self.known.get, self.split(text), itertools.repeat(self.special[UNKNOWN])))

    def decode(self, ids: Sequence[int]) -> str:
        hidden = {i for token, i in self.special.items() if token != UNKNOWN}
        return " ".join(self.vocabulary[i] for i in ids if i not in hidden)

    def byte_lengths(self) -> list[int]:
        return [0 if t in self.special else len(t.encode()) + 1 for t in self.vocabulary]

    def to_json(self) -> str:
        library = tokenizers_package()
        found = self.level(library)
        found.normalizer = library.normalizers.Lowercase()
        found.pre_tokenizer = library.pre_tokenizers.Split(library.Regex(self.pattern), "removed", invert=True)
        return json_with_special(library, found, self.special)


def word_vocabulary(
    texts: Iterable[str], least: int = LEAST, most: int = MOST_WORDS, split: Split = split_words
) -> tuple[str, ...]:
    """The vocabulary of a word tokenizer: special tokens, then up to `most` words that occur `least` times or more."""
    counts = Counter(itertools.chain.from_iterable(map(split, texts)))
    ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return (*SPECIALS, *[word for word, n in ranked if n >= least and word not in SPECIALS][:most])


def _new(texts: Iterable[str], specials: Sequence[str]) -> tuple[str, ...]:
    return word_vocabulary(texts)


@tokenizers.register(new_vocabulary=_new, split=split_words, program=PROGRAM)
def word(vocabulary: Sequence[str], special: tuple[tuple[str, int], ...]) -> WordTokenizer:
    """Lower-case words, split at white space alone."""
    return WordTokenizer("word", vocabulary, split_words, f"[^{characters(SPACES)}]+")
