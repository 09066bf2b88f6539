"""Metrics of labels and of numbers against scikit-learn and SciPy, which compute them on their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as oracle
from torch import Tensor

from bigmodel_cli.metrics.intervals import measure
from bigmodel_cli.tasks.multi_label_classification import choose_thresholds

LABELS = ("mean_average_precision", "micro_f1", "label_macro_f1", "hamming_loss", "subset_accuracy", "label_ece")
NUMBERS = ("mean_absolute_error", "mean_squared_error", "root_mean_squared_error", "r2", "spearman")


def labelled(n: int, k: int, seed: int) -> dict[str, Tensor]:
    """Logits with ties that know something of the targets; the last label is rare."""
    generator = torch.Generator().manual_seed(seed)
    rate = torch.linspace(0.6, 0.05, k)
    targets = (torch.rand(n, k, generator=generator) < rate).to(torch.int8)
    targets[0] = 1
    logits = (torch.randn(n, k, generator=generator) + 1.5 * targets).mul(4).round().div(4)
    return {"logits": logits, "targets": targets, "decisions": logits >= 0.5}


@pytest.mark.parametrize(("n", "k"), [(5, 1), (60, 3), (400, 12)])
def test_labels_agree_with_scikit_learn(n: int, k: int) -> None:
    out = labelled(n, k, seed=n)
    true, scores, decided = out["targets"].numpy(), out["logits"].numpy(), out["decisions"].numpy()
    found = {name: figure.value for name, figure in measure(LABELS, out, resamples=0).items()}
    each = [oracle.average_precision_score(true[:, i], scores[:, i]) for i in range(k)]
    assert found["mean_average_precision"] == pytest.approx(np.mean(each))
    assert found["micro_f1"] == pytest.approx(oracle.f1_score(true.ravel(), decided.ravel(), zero_division=0))
    by_label = [oracle.f1_score(true[:, i], decided[:, i], zero_division=0) for i in range(k)]
    assert found["label_macro_f1"] == pytest.approx(np.mean(by_label))
    assert found["hamming_loss"] == pytest.approx(np.mean(true != decided))
    assert found["subset_accuracy"] == pytest.approx((true == decided).all(1).mean())
    probability, pairs = 1 / (1 + np.exp(-scores.ravel())), true.ravel()
    bins = np.clip(np.ceil(probability * 15), 1, 15)
    gaps = [abs((probability - pairs)[bins == b].sum()) for b in range(1, 16)]
    assert found["label_ece"] == pytest.approx(sum(gaps) / len(pairs))


def test_unknown_labels_enter_no_metric() -> None:
    out = labelled(200, 4, seed=1)
    hidden = torch.rand(200, 4, generator=torch.Generator().manual_seed(2)) < 0.3
    hidden[:, 0] = False
    out["targets"][hidden] = -1
    found = {name: figure.value for name, figure in measure(LABELS, out, resamples=0).items()}
    columns = [out["targets"][:, i] >= 0 for i in range(4)]
    each = [
        oracle.average_precision_score(out["targets"][known, i], out["logits"][known, i])
        for i, known in enumerate(columns)
    ]
    assert found["mean_average_precision"] == pytest.approx(np.mean(each))
    known = out["targets"] >= 0
    true, decided = out["targets"][known] == 1, out["decisions"][known]
    assert found["hamming_loss"] == pytest.approx(float((true != decided).double().mean()))
    assert found["micro_f1"] == pytest.approx(oracle.f1_score(true, decided))


def test_a_resample_is_weighted_as_its_copies_would_be() -> None:
    """What a bootstrap sees: weights of samples, against the metric of the samples repeated."""
    out = labelled(50, 3, seed=3)
    counts = torch.randint(0, 4, (50,), generator=torch.Generator().manual_seed(4))
    repeated = {k: v.repeat_interleave(counts, 0) for k, v in out.items()}
    from bigmodel_cli.core.registry import metrics

    for name in LABELS:
        statistic = metrics.get(name)(out)
        value = (
            (statistic.double() @ counts.double() / counts.sum()).item()
            if isinstance(statistic, Tensor)
            else statistic(counts.double()[None]).item()
        )
        assert value == pytest.approx(measure([name], repeated, resamples=0)[name].value), name


@pytest.mark.parametrize(("n", "k"), [(3, 1), (50, 2), (300, 4)])
def test_numbers_agree_with_scikit_learn_and_scipy(n: int, k: int) -> None:
    generator = np.random.default_rng(n)
    values = generator.normal(5, 3, (n, k)).round(1)  # with ties
    predictions = values + generator.normal(0, 2, (n, k))
    out = {"predictions": torch.from_numpy(predictions), "values": torch.from_numpy(values)}
    found = {name: figure.value for name, figure in measure(NUMBERS, out, resamples=0).items()}
    assert found["mean_absolute_error"] == pytest.approx(oracle.mean_absolute_error(values, predictions))
    assert found["mean_squared_error"] == pytest.approx(oracle.mean_squared_error(values, predictions))
    assert found["root_mean_squared_error"] == pytest.approx(oracle.root_mean_squared_error(values, predictions))
    assert found["r2"] == pytest.approx(oracle.r2_score(values, predictions))
    ranks = [stats.spearmanr(values[:, i], predictions[:, i]).statistic for i in range(k)]
    assert found["spearman"] == pytest.approx(np.mean(ranks))


def test_metrics_of_numbers_that_do_not_vary_are_undefined() -> None:
    out = {"predictions": torch.rand(5, 1).double(), "values": torch.ones(5, 1).double()}
    assert set(measure(NUMBERS, out, resamples=0)) == set(NUMBERS) - {"r2", "spearman"}


def test_intervals_hold_the_value() -> None:
    out = labelled(300, 5, seed=9)
    for name, figure in measure(LABELS[:4], out).items():
        assert figure.low is not None and figure.high is not None, name
        assert figure.low < figure.value < figure.high, name


def test_thresholds_have_the_best_f1_of_all() -> None:
    out = labelled(120, 4, seed=6)
    found = choose_thresholds(out["logits"], out["targets"])
    probability = out["logits"].double().sigmoid().numpy()
    for k, threshold in enumerate(found):
        true = out["targets"][:, k].numpy()
        best = max(oracle.f1_score(true, probability[:, k] >= t) for t in np.unique(probability[:, k]))
        assert oracle.f1_score(true, probability[:, k] >= threshold) == pytest.approx(best)
        assert threshold not in probability[:, k]
    assert choose_thresholds(torch.randn(5, 1), torch.zeros(5, 1, dtype=torch.int8)) == (0.5,)
