"""What a language model repeats of its training text: common substrings, and the exposure of planted secrets.

Texts are sequences of token ids. Shapes: M texts of L tokens, N tokens of a block of the training text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

Ids = NDArray[numpy.int64]


@dataclass(frozen=True)
class Match:
    """The longest piece of a text that the training text has too: its length, and where it begins in the text."""

    length: int
    start: int


def longest_matches(texts: Ids, training: Iterable[Ids]) -> list[Match]:
    """The longest piece of each of `texts` (M,L) that the training text has, token by token.

    The training text comes in consecutive blocks, so that only one is in memory: O(N log N log L) time for each.
    A negative id, such as of what stands between documents, matches nothing.
    """
    count, length = texts.shape
    best = numpy.zeros((count, length), numpy.int64)
    tail = numpy.zeros(0, numpy.int64)
    for block in training:
        known = numpy.concatenate((tail, block))
        tail = known[max(0, len(known) - length + 1) :]  # a piece may begin in one block and end in the next
        best = numpy.maximum(best, _common_prefixes(texts, known))
    starts = best.argmax(1)
    return [Match(int(row[start]), int(start)) for row, start in zip(best, starts, strict=True)]


def _common_prefixes(texts: Ids, known: Ids) -> Ids:
    """How many tokens from each place of `texts` on stand somewhere in `known` (N,): (M,L).

    In a suffix array of both, the best match of a suffix is the nearest one of `known` before or after it.
    """
    count, length = texts.shape
    rows = numpy.pad(texts, ((0, 0), (1, 1)), constant_values=-1)  # no piece goes on from one text into the next
    whole = numpy.concatenate((known, rows.ravel()))
    order = _suffix_array(whole, length)
    is_known = order < len(known)
    places = numpy.arange(len(order))
    before = numpy.maximum.accumulate(numpy.where(is_known, places, -1))
    after = numpy.minimum.accumulate(numpy.where(is_known, places, len(order))[::-1])[::-1]
    asked = numpy.nonzero(~is_known)[0]
    starts = order[asked]
    padded = numpy.pad(whole, (0, length), constant_values=-1)
    reach = numpy.arange(length)
    own = padded[starts[:, None] + reach]
    found = numpy.zeros(rows.size, numpy.int64)
    for nearest in (before[asked], after[asked]):
        exists = (nearest >= 0) & (nearest < len(order))
        other = padded[order[numpy.where(exists, nearest, 0)][:, None] + reach]
        same = numpy.logical_and.accumulate((own == other) & (own >= 0), axis=1).sum(1) * exists
        found[starts - len(known)] = numpy.maximum(found[starts - len(known)], same)
    return found.reshape(count, length + 2)[:, 1:-1]


def _suffix_array(tokens: Ids, depth: int) -> Ids:
    """The places of `tokens` ordered by the `depth` tokens from each on, by prefix doubling (Manber and Myers 1993)."""
    rank = numpy.unique(tokens, return_inverse=True)[1].astype(numpy.int64)
    step = 1
    while step < depth and rank.max() + 1 < len(rank):
        following = numpy.zeros_like(rank)
        following[:-step] = rank[step:] + 1
        rank = numpy.unique(rank * (rank.max() + 2) + following, return_inverse=True)[1].astype(numpy.int64)
        step *= 2
    return rank.argsort(kind="stable")


def exposure(secret: float, others: Sequence[float]) -> float:
    """Exposure in bits of a secret of the loss `secret` among alternatives of the same form (Carlini et al. 2019).

    log2 of the number of all, less log2 of its rank: at most log2(1 + others), and exponential with a mean of
    1 / ln 2 = 1.44 bits for a secret that was not learned.
    """
    rank = 1 + sum(loss <= secret for loss in others)
    return math.log2(1 + len(others)) - math.log2(rank)


def p_of_exposures(bits: Sequence[float]) -> float:
    """The probability of so much exposure of all together if none was learned (Fisher 1932, combining ranks)."""
    from scipy.stats import gamma

    return float(gamma.sf(sum(bits) * math.log(2), len(bits)))


def p_of_more(count: int, total: int, others: int, total_others: int) -> float:
    """The probability of so many more than `others` of `total_others` by chance: Fisher's exact test, one-sided."""
    from scipy.stats import fisher_exact

    table = [[count, total - count], [others, total_others - others]]
    return float(fisher_exact(table, alternative="greater").pvalue)


def longer(lengths: Sequence[int], others: Sequence[int]) -> tuple[int, float]:
    """How many of `lengths` are above all `others` but their longest tenth, and the probability of so many by chance.

    That tenth may be copies, such as quotations, which would hide everything. The probability is exact if all have
    the same distribution (the precedence test, Nelson 1963).
    """
    from scipy.stats import hypergeom

    spared = len(others) // 10
    limit = sorted(others, reverse=True)[spared]
    count = sum(length > limit for length in lengths)
    return count, float(hypergeom.sf(count - 1, len(lengths) + len(others), len(lengths), count + spared))
