"""The metrics against two libraries that compute them on their own, and the intervals against what they mean."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn import metrics as oracle
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.insight.classification import (
    ClassificationReport,
    classification_report,
)
from bigmodel_cli.metrics.classification import BINS
from bigmodel_cli.metrics.intervals import RESAMPLES, with_intervals


def sample(n: int, k: int, seed: int = 0, skill: float = 1.5) -> tuple[Tensor, Tensor, Tensor]:
    """logits (n,k) that know something of labels (n,), and losses (n,)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(k, (n,), generator=generator)
    logits = torch.randn(n, k, generator=generator) + skill * F.one_hot(labels, k)
    return logits, labels, F.cross_entropy(logits, labels, reduction="none")


def names(k: int) -> list[str]:
    return [f"c{i}" for i in range(k)]


def values(report: ClassificationReport) -> dict[str, float]:
    return {name: figure.value for name, figure in report.headline.items()}


@pytest.mark.parametrize(("n", "k"), [(1, 2), (7, 3), (90, 5), (90, 6), (500, 10), (2000, 37)])
def test_headline_figures_agree_with_the_oracles(n: int, k: int) -> None:
    logits, labels, losses = sample(n, k, seed=n)
    found = values(classification_report(logits, labels, losses, names(k)))
    said = logits.argmax(1).numpy()
    present = np.union1d(labels.numpy(), said)
    assert found["loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-6)
    assert found["accuracy"] == pytest.approx(oracle.accuracy_score(labels.numpy(), said))
    assert ("top5_accuracy" in found) == (k > 5)
    if k > 5:
        top5 = multiclass_accuracy(logits, labels, k, top_k=5, average="micro")
        assert found["top5_accuracy"] == pytest.approx(top5.item(), abs=1e-6)
    f1 = oracle.f1_score(labels.numpy(), said, labels=present, average="macro", zero_division=0)
    assert found["macro_f1"] == pytest.approx(f1)
    ece = multiclass_calibration_error(logits.softmax(1), labels, k, n_bins=BINS, norm="l1")
    assert found["ece"] == pytest.approx(ece.item(), abs=1e-5)


def test_each_class_and_the_confusion_matrix_agree_with_sklearn() -> None:
    logits, labels, losses = sample(800, 9)
    report = classification_report(logits, labels, losses, names(9))
    said = logits.argmax(1).numpy()
    assert report.confusion == oracle.confusion_matrix(labels.numpy(), said).tolist()
    precision, recall, f1, support = oracle.precision_recall_fscore_support(labels.numpy(), said)
    for i, row in enumerate(report.per_class):
        assert row["class"] == f"c{i}" and row["support"] == support[i]
        assert (row["precision"], row["recall"], row["f1"]) == pytest.approx((precision[i], recall[i], f1[i]))


def test_what_is_undefined_is_none_and_not_zero() -> None:
    # c2 is never true and never called; c1 is true but never called.
    logits = torch.tensor([[4.0, 0.0, 0.0], [4.0, 0.0, 0.0]])
    labels = torch.tensor([0, 1])
    report = classification_report(logits, labels, torch.ones(2), names(3))
    assert report.per_class[1] == {"class": "c1", "precision": None, "recall": 0.0, "f1": 0.0, "support": 1}
    assert report.per_class[2] == {"class": "c2", "precision": None, "recall": None, "f1": None, "support": 0}
    # The mean is over the two classes that are there: (2/3 + 0) / 2.
    assert values(report)["macro_f1"] == pytest.approx(1 / 3)


def test_classes_the_model_never_saw_are_counted_and_in_no_figure() -> None:
    logits, labels, losses = sample(300, 5)
    with_unseen = labels.clone()
    with_unseen[::3] = -1
    mixed = classification_report(logits, with_unseen, losses, names(5))
    kept = with_unseen >= 0
    alone = classification_report(logits[kept], labels[kept], losses[kept], names(5))
    assert (mixed.unseen, mixed.samples, alone.unseen) == (100, 200, 0)
    assert mixed.headline == alone.headline and mixed.confusion == alone.confusion
    # Indices are places in what was given, not in what is left of it.
    assert {i for i, *_ in mixed.wrong} == set((kept & (logits.argmax(1) != labels)).nonzero().flatten().tolist())


def test_a_report_on_thousands_of_classes_stays_small() -> None:
    """The matrix of 10,000 classes was one line of 193 MB; the pairs confused most say what people look for in it."""
    k = 3000
    labels = torch.arange(k).repeat(2)
    predictions = labels.clone()
    predictions[:7], predictions[k : k + 3] = 11, 11
    logits = torch.zeros(len(labels), k).scatter_(1, predictions[:, None], 5.0)
    report = classification_report(logits, labels, torch.ones(len(labels)), names(k), names=["accuracy"])
    assert report.confusion is None
    assert report.confused[:4] == [("c0", "c11", 2), ("c1", "c11", 2), ("c2", "c11", 2), ("c3", "c11", 1)]
    assert len(json.dumps(report.to_dict())) < 150 * k
    of_11 = report.per_class[11]
    assert (of_11["support"], of_11["recall"], of_11["precision"]) == (2, 1.0, 2 / 12)


def test_nothing_but_unseen_classes_gives_no_figure() -> None:
    report = classification_report(torch.randn(4, 3), torch.full((4,), -1), torch.ones(4), names(3))
    assert (report.samples, report.unseen, report.headline, report.wrong) == (0, 4, {}, [])
    json.dumps(report.to_dict(), allow_nan=False)


def test_wrong_predictions_come_most_confident_first() -> None:
    logits, labels, losses = sample(400, 4)
    wrong = classification_report(logits, labels, losses, names(4)).wrong
    assert len(wrong) == int((logits.argmax(1) != labels).sum()) > 10
    confidences = [sure for *_, sure in wrong]
    assert confidences == sorted(confidences, reverse=True)
    for index, true, said, sure in wrong:
        assert true == f"c{labels[index]}" and said == f"c{logits[index].argmax()}" != true
        assert sure == pytest.approx(logits[index].softmax(0).max().item())


def test_the_answer_is_the_largest_logit_even_where_probabilities_round_to_equal() -> None:
    logits = torch.tensor([[0.0, 1e-8, 0.0]])
    assert logits.softmax(1)[0, 0] == logits.softmax(1)[0, 1]
    assert values(classification_report(logits, torch.tensor([1]), torch.ones(1), names(3)))["accuracy"] == 1


def test_a_perfectly_calibrated_set_has_no_calibration_error() -> None:
    # Four groups; in a group of confidence p, a share of exactly p is right.
    logits, labels = [], []
    for p in (0.55, 0.65, 0.75, 0.95):
        right = round(200 * p)
        logits += [[float(np.log(p / (1 - p))), 0.0]] * 200
        labels += [0] * right + [1] * (200 - right)
    given = torch.tensor(logits), torch.tensor(labels)
    assert values(classification_report(*given, torch.ones(800), names(2)))["ece"] == pytest.approx(0, abs=1e-6)
    # Four times the logits is far too sure of itself, with the same answers.
    sure = classification_report(given[0] * 4, given[1], torch.ones(800), names(2))
    assert values(sure)["ece"] > 0.1


def test_calibration_of_a_model_that_is_wholly_sure() -> None:
    """A confidence of exactly 1 belongs to the last bin."""
    logits, labels, losses = sample(300, 4)
    logits = logits * 1000
    assert (logits.softmax(1).amax(1) == 1).sum() > 200
    right = (logits.argmax(1) == labels).double().mean().item()
    found = values(classification_report(logits, labels, losses, names(4)))
    assert found["ece"] == pytest.approx(1 - right, abs=0.02) and found["ece"] > 0.1


def test_intervals_contain_their_value_and_shrink_with_n() -> None:
    widths = []
    for n in (100, 1600):
        report = classification_report(*sample(n, 6), names(6))
        for name, figure in report.headline.items():
            # Absolute values only ever add up, so a resample's calibration error is biased upwards.
            assert figure.low < figure.high and (name == "ece" or figure.low <= figure.value <= figure.high)
        widths.append(report.headline["accuracy"].high - report.headline["accuracy"].low)
    assert 3 < widths[0] / widths[1] < 5.5  # sqrt(16) = 4


def test_the_interval_of_accuracy_is_the_binomial_one() -> None:
    report = classification_report(*sample(1000, 6), names(6))
    accuracy = report.headline["accuracy"]
    error = (accuracy.value * (1 - accuracy.value) / 1000) ** 0.5
    assert (accuracy.high - accuracy.low) / 2 == pytest.approx(1.96 * error, rel=0.12)


def test_intervals_cover_the_truth_about_95_times_in_100() -> None:
    truth = values(classification_report(*sample(50_000, 3, seed=99), names(3)))["accuracy"]
    hits = 0
    for seed in range(100):
        accuracy = classification_report(*sample(200, 3, seed=seed), names(3)).headline["accuracy"]
        hits += accuracy.low <= truth <= accuracy.high
    assert 87 <= hits <= 100  # 95 expected; below 87 has a chance under 0.1%


def test_the_seed_decides_the_interval_and_nothing_else() -> None:
    given = sample(200, 4)
    a, b, c = (classification_report(*given, names(4), seed=s) for s in (0, 0, 1))
    assert a == b and a.headline != c.headline and values(a) == values(c)


def test_a_nan_answer_is_an_error_that_counts_them() -> None:
    logits, labels, losses = sample(10, 3)
    logits[4, 1] = logits[7, 0] = float("nan")
    with pytest.raises(InputError, match="NaN for 2 of 10 samples"):
        classification_report(logits, labels, losses, names(3))


@pytest.mark.parametrize(("n", "k"), [(1000, 1000), (100_000, 2)])
def test_memory_stays_bounded(n: int, k: int) -> None:
    """All resamples at once: 8 GB of (K,K) matrices, or 0.8 GB a weight. In a process whose peak is its own."""
    program = """
import resource, sys, torch
from bigmodel_cli.insight.classification import classification_report
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
n, k = map(int, sys.argv[1:])
labels = torch.arange(n) % k
before = peak()
classification_report(torch.randn(n, k), labels, torch.ones(n), [str(i) for i in range(k)])
print(peak() - before)
"""
    command = [sys.executable, "-c", program, str(n), str(k)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1_000_000  # kB


def test_the_dict_is_plain_json_and_says_what_the_report_does() -> None:
    logits, labels, losses = sample(50, 3)
    labels[:4] = -1
    report = classification_report(logits, labels, losses, names(3))
    again = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert again == report.to_dict()
    assert {k: (v["value"], v["low"], v["high"]) for k, v in again.pop("headline").items()} == {
        k: (v.value, v.low, v.high) for k, v in report.headline.items()
    }
    assert again == {
        "samples": 46, "unseen": 4, "selective": report.selective,
        "per_class": report.per_class, "confusion": report.confusion,
        "confused": [{"true": t, "predicted": p, "samples": n} for t, p, n in report.confused],
        "wrong_count": len(report.wrong),
    }  # fmt: skip


@pytest.mark.parametrize("n", [7, 9_000])
def test_an_interval_is_between_percentiles_of_a_thousand_resamples(n: int) -> None:
    """By NumPy, over the resamples that the figure was asked for; a large sample comes in chunks, the last smaller."""
    values = torch.rand(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    asked: list[Tensor] = []

    def mean(weights: Tensor) -> Tensor:
        asked.append(weights @ values / n)
        assert weights.sum(1).eq(n).all()  # each resample is as large as the sample
        return asked[-1]

    found = with_intervals({"mean": mean}, n, 2, seed=3)["mean"]
    whole, drawn = asked[0], torch.cat(asked[1:]).numpy()
    assert found.value == whole.item() == pytest.approx(values.mean().item())
    assert len(drawn) == RESAMPLES == 1000 and len(np.unique(drawn)) > 500
    assert (len(asked) > 2) == (n > 4000) and max(map(len, asked)) * n <= 4_000_000
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(drawn, [2.5, 97.5])))
