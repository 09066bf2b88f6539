"""LiRA and its figures: against closed forms, counts by hand and scikit-learn."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.engine.experiments.shadow_models import _read
from bigmodel_cli.insight.trust.membership import (
    auc,
    confidence,
    likelihood_ratio,
    measure_attack,
    private_bound,
    true_positive_rate,
)


def test_confidence_is_the_log_odds_of_the_true_class() -> None:
    logits = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(50) % 4
    p = logits.double().softmax(1)[torch.arange(50), labels]
    torch.testing.assert_close(confidence(logits, labels), (p / (1 - p)).log())
    sure = confidence(torch.tensor([[1000.0, 0.0]]), torch.tensor([0]))
    assert torch.isfinite(sure).all()


def test_scores_are_log_likelihood_ratios_of_normals() -> None:
    numbers = torch.Generator().manual_seed(1)
    inside = torch.rand(80, 30, generator=numbers).argsort(0).argsort(0) < 40
    shadow = torch.randn(80, 30, generator=numbers).double() + 2 * inside
    target = torch.randn(30, generator=numbers).double()
    found = likelihood_ratio(target, shadow, inside)
    for i in range(30):
        a, b = shadow[inside[:, i], i], shadow[~inside[:, i], i]
        told = [torch.distributions.Normal(x.mean(), x.std()).log_prob(target[i]) for x in (a, b)]
        assert float(found[i]) == pytest.approx(float(told[0] - told[1]), rel=1e-9)


def test_figures_are_those_of_scikit_learn() -> None:
    numbers = torch.Generator().manual_seed(2)
    members, others = (torch.randn(3000, generator=numbers) + 1).round(decimals=1), torch.randn(2000, generator=numbers)
    truth, scores = torch.cat((torch.ones(3000), torch.zeros(2000))), torch.cat((members, others))
    assert auc(members, others) == pytest.approx(roc_auc_score(truth, scores))
    fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
    for rate in (0.01, 0.001):
        assert true_positive_rate(members, others, rate) == pytest.approx(tpr[fpr <= rate + 1e-12].max())


def test_an_attack_that_knows_nothing_is_told_as_chance() -> None:
    numbers = torch.Generator().manual_seed(3)
    found = measure_attack(torch.randn(4000, generator=numbers), torch.randn(4000, generator=numbers))
    deviation = math.sqrt(8001 / (12 * 4000**2))  # of the rank-sum statistic (Mann and Whitney 1947)
    assert abs(found.auc[0] - 0.5) < 4 * deviation
    assert found.auc[2] - found.auc[1] == pytest.approx(2 * 1.96 * deviation, rel=0.2)
    at = found.tpr[0.01]
    assert at is not None and abs(at[0] - 0.01) < 4 * math.sqrt(2 * 0.01 * 0.99 / 4000) and at[1] < at[0] < at[2]
    few = measure_attack(torch.randn(50, generator=numbers), torch.randn(50, generator=numbers))
    assert few.tpr[0.01] is None and few.to_dict()["tpr_at_0.01_fpr"] is None


def test_no_test_of_a_private_mechanism_beats_the_bound() -> None:
    """The Gaussian mechanism, whose best test is known: a threshold on its output (Dong et al. 2022)."""
    normal = torch.distributions.Normal(0.0, 1.0)
    delta, sigma = 1e-3, 1.0

    def spent(epsilon: float) -> float:  # Balle and Wang 2018: the exact delta of an epsilon
        a, b = 0.5 / sigma - epsilon * sigma, -0.5 / sigma - epsilon * sigma
        return float(normal.cdf(torch.tensor(a)) - math.exp(epsilon) * normal.cdf(torch.tensor(b)))

    epsilon = next(e / 100 for e in range(1, 1000) if spent(e / 100) <= delta)
    for rate in (0.001, 0.01, 0.1, 0.5):
        best = float(normal.cdf(normal.icdf(torch.tensor(rate)) + 1 / sigma))
        assert best <= private_bound(epsilon, delta, rate) + 1e-6
    assert private_bound(0.0, 0.0, 0.01) == pytest.approx(0.01)


def test_kept_outputs_are_read_as_a_strangers(tmp_path: Path) -> None:
    """They lie beside the checkpoint: 20 kB of zeros would be 20 MB, and a pickle would run code."""
    file, good = tmp_path / "shadow-0.npz", {"logits": np.zeros((3, 2), np.float32), "labels": np.arange(3)}

    def kept(save: Callable[..., None], **values: Any) -> None:
        with file.open("wb") as out:
            save(out, **{**good, **values})

    kept(np.savez)
    assert _read(file, 3)["labels"].tolist() == [0, 1, 2]  # negative control
    ways: dict[str, Callable[[], object]] = {
        "compressed": lambda: kept(np.savez_compressed, logits=np.zeros((3, 10**6))),
        "another number of samples": lambda: kept(np.savez, labels=np.arange(4)),
        "pickle": lambda: kept(np.savez, labels=np.array([Path("x")] * 3)),
        "not a zip": lambda: file.write_bytes(b"PK"),
        "damaged": lambda: file.write_bytes(file.read_bytes()[:-30]),
    }
    for what, make in ways.items():
        make()
        with pytest.raises(InputError, match=f"{file}: damaged") as refused:
            _read(file, 3)
        assert what in str(refused.value) or what == "damaged"
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(InputError, match="not a regular file"):
        _read(file, 3)
