"""What a language model repeats of its training text: common substrings, and the exposure of planted secrets.

Texts are sequences of token ids; N is the length of the training text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

Ids = NDArray[numpy.int64]
BASE = 0x9E3779B97F4A7C15 | 1  # odd, so that it has an inverse modulo 2^64


@dataclass(frozen=True)
class Match:
    """The longest piece of a text that the training text has too: `length` tokens, where it begins in each."""

    length: int
    in_text: int
    in_training: int


class TrainingText:
    """Training text to look for pieces of other texts in: O(N log N) time for each length tried, O(N) memory.

    The pieces of one length are compared by a hash of their tokens; a piece that is found is compared token by token.
    """

    def __init__(self, tokens: Sequence[int] | Ids) -> None:
        self.tokens: Ids = numpy.asarray(tokens, dtype=numpy.int64)

    def longest(self, texts: Sequence[Sequence[int] | Ids]) -> list[Match]:
        """The longest match of each of `texts`: a binary search over the length, for all of them at once."""
        queries = [numpy.asarray(text, dtype=numpy.int64) for text in texts]
        low = [0] * len(queries)
        high = [min(len(q), len(self.tokens)) for q in queries]
        best = [Match(0, 0, 0) for _ in queries]
        while any(a < b for a, b in zip(low, high, strict=True)):
            wanted = [(a + b + 1) // 2 for a, b in zip(low, high, strict=True)]
            for length in sorted({w for w, a, b in zip(wanted, low, high, strict=True) if a < b}):
                chosen = [i for i, w in enumerate(wanted) if w == length and low[i] < high[i]]
                known = _hashes(self.tokens, length)
                order = known.argsort(kind="stable")
                for i in chosen:
                    match = self._find(queries[i], length, known, order)
                    if match is None:
                        high[i] = length - 1
                    else:
                        low[i], best[i] = length, match
        return best

    def _find(self, text: Ids, length: int, known: NDArray[numpy.uint64], order: Ids) -> Match | None:
        hashes = _hashes(text, length)
        places = numpy.minimum(numpy.searchsorted(known, hashes, sorter=order), len(order) - 1)
        for start in numpy.nonzero(known[order[places]] == hashes)[0]:
            place = int(order[places[start]])
            if numpy.array_equal(self.tokens[place : place + length], text[start : start + length]):
                return Match(length, int(start), place)
        return None


def _hashes(tokens: Ids, length: int) -> NDArray[numpy.uint64]:
    """A polynomial hash modulo 2^64 of each piece of `length` tokens."""
    n = len(tokens)
    with numpy.errstate(over="ignore"):
        mixed = (tokens.astype(numpy.uint64) + numpy.uint64(1)) * numpy.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> numpy.uint64(31)
        powers = numpy.cumprod(numpy.full(n, BASE, dtype=numpy.uint64), dtype=numpy.uint64)
        inverse = numpy.cumprod(numpy.full(n, pow(BASE, -1, 1 << 64), dtype=numpy.uint64), dtype=numpy.uint64)
        sums = numpy.concatenate((numpy.zeros(1, numpy.uint64), numpy.cumsum(mixed * powers, dtype=numpy.uint64)))
        return (sums[length:] - sums[: n - length + 1]) * inverse[: n - length + 1]


def exposure(secret: float, others: Sequence[float]) -> float:
    """Exposure in bits of a secret of the loss `secret` among alternatives of the same form (Carlini et al. 2019).

    log2 of their number less log2 of its rank: 0 to 1 on average where nothing was learned, at most log2(1 + others).
    """
    rank = 1 + sum(loss < secret for loss in others) + sum(loss == secret for loss in others) / 2
    return math.log2(1 + len(others)) - math.log2(rank)


def share_interval(count: int, total: int) -> tuple[float, float, float]:
    """A share with its 95% interval (Wilson 1927)."""
    z, p = 1.959964, count / total
    middle = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total**2)) / (1 + z * z / total)
    return p, max(0.0, middle - half), min(1.0, middle + half)
