"""Calibration, abstention and conformal sets against other programs and against what they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import conformal_scores
from bigmodel_cli.insight.trust.conformal import conformal_sets, ranked, threshold
from bigmodel_cli.insight.trust.out_of_distribution import separation
from bigmodel_cli.insight.trust.selective import selective
from bigmodel_cli.insight.trust.temperature import fit_temperature, negative_log_likelihood


def overconfident(n: int, k: int = 10, scale: float = 3.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits (n,k) that are `scale` times what their labels (n,) were drawn from."""
    generator = torch.Generator().manual_seed(seed)
    honest = torch.randn(n, k, generator=generator) * 2
    labels = torch.multinomial(honest.softmax(1), 1, generator=generator)[:, 0]
    return honest * scale, labels


def test_the_temperature_is_the_one_that_scipy_finds_and_undoes_the_overconfidence() -> None:
    logits, labels = overconfident(4000)
    found = fit_temperature(logits, labels)
    oracle = minimize_scalar(
        lambda t: negative_log_likelihood(logits / t, labels),
        bounds=(0.1, 20),
        method="bounded",
        options={"xatol": 1e-8},
    )
    assert found == pytest.approx(oracle.x, rel=1e-4) and found == pytest.approx(3.0, rel=0.1)
    assert fit_temperature(logits / found, labels) == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize(("right", "expected"), [(True, 1e-3), (False, 1e3)])
def test_outputs_that_are_all_right_or_all_wrong_end_at_the_bounds(right: bool, expected: float) -> None:
    logits = torch.eye(3) if right else -torch.eye(3)
    assert fit_temperature(logits, torch.arange(3)) == pytest.approx(expected)


def test_no_samples_or_outputs_that_are_not_finite_fit_nothing() -> None:
    for logits in (torch.zeros(0, 3), torch.full((2, 3), math.nan)):
        with pytest.raises(InputError, match="temperature"):
            fit_temperature(logits, torch.zeros(len(logits), dtype=torch.int64))


def test_abstaining_from_the_least_certain() -> None:
    found = selective(torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([True, True, False, True]))
    at = {row["coverage"]: (row["samples"], row["accuracy"]) for row in found["at_coverage"]}
    assert at[1.0] == (4, 0.75) and at[0.5] == (2, 1.0) and at[0.7] == (3, pytest.approx(2 / 3))
    assert found["aurc"] == pytest.approx((0 + 0 + 1 / 3 + 1 / 4) / 4)
    assert found["aurc_best"] == pytest.approx((0 + 0 + 0 + 1 / 4) / 4)


@pytest.mark.parametrize("level", [0.8, 0.9, 0.95])
def test_every_score_covers_what_it_promises(level: float) -> None:
    calibration, measured = overconfident(3000, seed=1), overconfident(6000, seed=2)
    found = conformal_sets(calibration, measured, level)
    assert set(found) == {"lac", "aps", "raps", "saps"}
    for name, sets in found.items():
        # The coverage is beta distributed around the level: 3000 calibration and 6000 measured samples.
        assert abs(sets.coverage - level) < 4 * math.sqrt(level * (1 - level) * (1 / 2400 + 1 / 6000)), name
        assert sets.mean_size >= sets.coverage and abs(sets.size_at_level - sets.mean_size) < 0.6


def test_the_least_ambiguous_sets_are_the_smallest_where_probabilities_hold() -> None:
    """Sadinle et al. 2019, theorem 1: of all sets that cover a level, those of LAC with the true probabilities."""
    found = conformal_sets(overconfident(3000, scale=1, seed=1), overconfident(6000, scale=1, seed=2), 0.9)
    smallest = found.pop("lac").size_at_level
    assert all(smallest <= sets.size_at_level + 0.01 for sets in found.values())


def test_the_threshold_counts_the_sample_to_come() -> None:
    scores = torch.arange(1, 10, dtype=torch.float64)
    assert threshold(scores, 0.9) == 9.0 and threshold(scores, 0.5) == 5.0 and threshold(scores, 0.91) == math.inf
    with pytest.raises(InputError, match="at least 20"):
        conformal_sets(overconfident(19), overconfident(50), 0.9)


def test_the_scores_by_hand() -> None:
    p, u = torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.float64), torch.tensor([[0.5]], dtype=torch.float64)
    place, before = ranked(p)
    assert place.tolist() == [[3, 1, 2]] and before.tolist() == [[pytest.approx(0.8), 0.0, pytest.approx(0.5)]]
    labels = torch.tensor([1])
    expected = {
        "lac": [0.8, 0.5, 0.7],
        "aps": [0.9, 0.25, 0.65],
        "raps": [0.9 + 2 * 0.001, 0.25, 0.65 + 0.001],  # the first choice: the true class is likeliest, penalty 0.001
        "saps": [0.5 + 1.5 * 0.02, 0.25, 0.5 + 0.5 * 0.02],
    }
    for name, values in expected.items():
        _, score = next(iter(conformal_scores.get(name)(p, labels, 0.9)))
        assert score(p, u)[0].tolist() == pytest.approx(values), name


def test_foreign_samples_are_told_apart() -> None:
    sure, unsure = torch.tensor([[9.0, 0, 0]] * 95 + [[0.0, 0, 0]] * 5), torch.tensor([[0.1, 0, 0]] * 30)
    found = separation(sure, unsure, True)
    assert found["max_probability"]["auroc"] == pytest.approx(0.95) and found["max_probability"]["fpr95"] == 0
    assert set(separation(sure, unsure, False)) == {"energy", "max_logit"}  # scores have no probability


def test_the_sets_are_mapies() -> None:
    mapie = pytest.importorskip("mapie.classification", reason="mapie is not installed (pip install mapie)")
    from sklearn.base import BaseEstimator, ClassifierMixin

    class Fixed(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
        """Probabilities that are given."""

        classes_ = np.arange(10)

        def __sklearn_is_fitted__(self) -> bool:
            return True

        def predict_proba(self, x: np.ndarray) -> np.ndarray:
            return torch.from_numpy(x).softmax(1).numpy()

        def predict(self, x: np.ndarray) -> np.ndarray:
            return np.asarray(x.argmax(1))

        def fit(self, x: np.ndarray, y: np.ndarray) -> Fixed:
            return self

    calibration, measured = overconfident(1500, seed=3), overconfident(1500, seed=4)
    oracle = mapie.SplitConformalClassifier(Fixed(), confidence_level=0.9, conformity_score="lac", prefit=True)
    oracle.conformalize(calibration[0].double().numpy(), calibration[1].numpy())
    _, theirs = oracle.predict_set(measured[0].double().numpy())
    ours = conformal_sets(calibration, measured, 0.9)["lac"]
    assert ours.mean_size == pytest.approx(theirs[:, :, 0].sum(1).mean(), abs=2e-3)
