"""Longest common substrings against a search by hand; exposure against its definition."""

from __future__ import annotations

import math
import random

import pytest

from bigmodel_cli.insight.trust.memorisation import TrainingText, exposure, share_interval


def by_hand(text: list[int], training: list[int]) -> int:
    found = 0
    for i in range(len(text)):
        for j in range(len(training)):
            k = 0
            while i + k < len(text) and j + k < len(training) and text[i + k] == training[j + k]:
                k += 1
            found = max(found, k)
    return found


def test_matches_are_the_longest_there_are() -> None:
    numbers = random.Random(0)
    training = [numbers.randrange(3) for _ in range(200)]
    texts = [[numbers.randrange(3) for _ in range(n)] for n in (0, 1, 5, 40, 60)]
    texts += [training[50:90], [7, 8, 9], [0] * 20, [*training, 5]]
    for text, match in zip(texts, TrainingText(training).longest(texts), strict=True):
        assert match.length == by_hand(text, training)
        a, b, n = match.in_text, match.in_training, match.length
        assert text[a : a + n] == training[b : b + n]


def test_exposure_is_the_bits_by_which_the_rank_falls() -> None:
    others = [float(i) for i in range(1, 1024)]
    assert exposure(0.5, others) == pytest.approx(10)
    assert exposure(2000.0, others) == pytest.approx(0)
    assert exposure(511.5, others) == pytest.approx(math.log2(1024 / 512))


def test_a_share_has_an_interval_that_holds_it() -> None:
    assert share_interval(0, 50)[0] == share_interval(0, 50)[1] == 0 < share_interval(0, 50)[2] < 0.1
    value, low, high = share_interval(20, 50)
    assert low < value < high
