"""Longest common substrings against a search by hand; exposure and its probabilities against their definitions."""

from __future__ import annotations

import itertools
import math
import random

import numpy
import pytest

from bigmodel_cli.insight.trust.memorisation import exposure, longer, longest_matches, p_of_exposures, p_of_more


def by_hand(text: list[int], training: list[int]) -> int:
    pieces = {
        tuple(training[i:j]) for i in range(len(training)) for j in range(i, min(i + len(text), len(training)) + 1)
    }
    inside = [(i, j) for i in range(len(text)) for j in range(i, len(text) + 1) if min(text[i:j], default=0) >= 0]
    return max(j - i for i, j in inside if tuple(text[i:j]) in pieces)


@pytest.mark.parametrize("symbols", [1, 2, 40])
@pytest.mark.parametrize("block", [1, 7, 1000])
def test_matches_are_the_longest_there_are(symbols: int, block: int) -> None:
    numbers = random.Random(symbols)
    training = [numbers.randrange(symbols) for _ in range(150)]
    training[60] = -1  # between two documents
    texts = [[numbers.randrange(symbols) for _ in range(30)] for _ in range(6)]
    texts += [training[70:100], training[45:75], [99] * 30, [99, *training[121:]]]
    blocks = [numpy.array(training[i : i + block]) for i in range(0, len(training), block)]
    for text, match in zip(texts, longest_matches(numpy.array(texts), blocks), strict=True):
        assert match.length == by_hand(text, training)
        piece = text[match.start : match.start + match.length]
        assert any(training[i : i + match.length] == piece for i in range(len(training)))


def test_exposure_is_the_bits_by_which_the_rank_falls() -> None:
    others = [float(i) for i in range(1, 1024)]
    assert exposure(0.5, others) == pytest.approx(10)
    assert exposure(2000.0, others) == exposure(1.0, [1.0] * 7) == 0  # nothing is claimed of a tie
    assert exposure(511.5, others) == pytest.approx(math.log2(1024 / 512))


def test_probabilities_hold_where_nothing_was_learned() -> None:
    numbers = random.Random(0)
    trials = [[exposure(numbers.random(), [numbers.random() for _ in range(99)]) for _ in range(5)] for _ in range(400)]
    values = [p_of_exposures(bits) for bits in trials]
    for level in (0.5, 0.1):
        assert sum(p <= level for p in values) / len(values) == pytest.approx(level, abs=0.08)
    assert p_of_exposures([10.0] * 5) < 1e-6
    assert p_of_more(5, 40, 0, 40) == pytest.approx(math.comb(40, 5) / math.comb(80, 5))
    assert p_of_more(0, 40, 3, 40) == 1


def test_lengths_are_compared_by_their_order_alone() -> None:
    assert longer([9, 9, 1], [8, 2]) == (2, pytest.approx(3 / 10))  # the two longest of five are two of the three
    assert longer([1, 2], [2, 2])[1] == 1
    orders = list(itertools.combinations(range(14), 4))
    many = [longer(order, [i for i in range(14) if i not in order]) for order in orders]  # 4 and 10, so one is spared
    for count, p in set(many):
        assert p == pytest.approx(sum(c >= count for c, _ in many) / len(orders))
