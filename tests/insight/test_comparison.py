"""Paired tests against statsmodels' and scipy's figures, and against what they promise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.stats import binom

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.insight.comparison import compare_pairs, holm, mcnemar, recipe_differences


def classifier(accuracy: float, n: int, seed: int) -> dict[str, Any]:
    """Outputs of a model that is right at random; label i % 4."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 4
    right = torch.rand(n, generator=generator) < accuracy
    said = torch.where(right, labels, (labels + 1) % 4)
    return {"logits": torch.nn.functional.one_hot(said, 4).float(), "label": labels, "loss": (~right).float()}


def test_mcnemar_is_the_binomial_test_of_the_samples_that_one_has_right() -> None:
    assert mcnemar(0, 0) == 1.0 and mcnemar(5, 5) == 1.0
    assert mcnemar(2, 10) == pytest.approx(2 * binom.cdf(2, 12, 0.5))
    assert mcnemar(10, 2) == mcnemar(2, 10)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])  # as statsmodels.multipletests gives them
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_a_better_model_is_found_and_equal_ones_are_not() -> None:
    outputs = [classifier(0.9, 2000, 0), classifier(0.8, 2000, 1), classifier(0.9, 2000, 2)]
    pairs = {(p.first, p.second): p for p in compare_pairs("accuracy", outputs)}
    assert pairs[0, 1].better == 0 and pairs[1, 2].better == 2 and pairs[0, 2].better is None
    one = pairs[0, 1]
    assert one.test == "McNemar, exact" and one.low < one.difference < one.high and one.p <= one.p_corrected < 1e-6
    right = [o["logits"].argmax(1) == o["label"] for o in outputs]
    assert one.only == (int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum()))
    assert one.difference == pytest.approx(float(right[0].double().mean() - right[1].double().mean()))


def test_a_metric_where_less_is_better_is_drawn_with_the_same_samples() -> None:
    """Two losses that rise and fall together differ by far less than either varies."""
    base = torch.rand(500, generator=torch.Generator().manual_seed(3)) * 10
    outputs = [{"loss": base, "logits": torch.zeros(500, 2)}, {"loss": base + 0.01, "logits": torch.zeros(500, 2)}]
    (pair,) = compare_pairs("loss", outputs)
    assert pair.test == "paired bootstrap" and pair.better == 0 and pair.only is None
    assert pair.difference == pytest.approx(-0.01, abs=1e-6) and pair.high - pair.low < 1e-3
    with pytest.raises(InputError, match="the same samples"):
        compare_pairs("loss", [outputs[0], {k: v[:9] for k, v in outputs[1].items()}])


def test_equal_models_are_rarely_told_apart() -> None:
    """In one of a hundred pairs of equals, as the level says, up to chance: 200 pairs."""
    said = sum(
        compare_pairs("accuracy", [classifier(0.8, 300, 2 * i), classifier(0.8, 300, 2 * i + 1)])[0].better is not None
        for i in range(200)
    )
    assert said <= 7  # binomial(200, 0.01): more in 1 of 1,000 cases


def test_only_what_differs_in_recipes_is_listed() -> None:
    a = {"model": {"name": "mlp", "hidden": [10]}, "train": {"seed": 0, "epochs": 3}}
    b = {"model": {"name": "cnn"}, "train": {"seed": 0, "epochs": 4}}
    assert recipe_differences([a, b]) == {
        "model.name": ["mlp", "cnn"], "model.hidden": [[10], None], "train.epochs": [3, 4],
    }  # fmt: skip
    assert recipe_differences([a, a]) == {}
