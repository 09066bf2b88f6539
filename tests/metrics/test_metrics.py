"""The registry of metrics: what a function may return, what each is held against, and how a person reads it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from scipy.stats import binomtest
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import metrics, tasks
from bigmodel_cli.metrics.intervals import Figure, measure
from bigmodel_cli.metrics.reading import format_interval, format_metric, is_share
from bigmodel_cli.tasks.labelled import METRICS


@pytest.fixture
def added() -> Iterator[None]:
    """Metrics of a test's own, taken out again."""
    before = dict(metrics.found), dict(metrics._entries)
    yield
    for kept, now in zip(before, (metrics.found, metrics._entries), strict=True):
        now.clear()
        now.update(kept)


def outputs(n: int = 400, k: int = 7) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(k, (n,), generator=generator)
    logits = torch.randn(n, k, generator=generator) + 1.5 * torch.nn.functional.one_hot(label, k)
    return {
        "logits": logits,
        "label": label,
        "loss": torch.nn.functional.cross_entropy(logits, label, reduction="none"),
    }


def test_they_agree_with_torchmetrics() -> None:
    out = outputs()
    found = measure(METRICS, out)
    for name, top in (("accuracy", 1), ("top5_accuracy", 5)):
        theirs = multiclass_accuracy(out["logits"], out["label"], 7, top_k=top, average="micro")
        assert found[name].value == pytest.approx(theirs.item())
    theirs = multiclass_f1_score(out["logits"], out["label"], 7, average="macro")
    assert found["macro_f1"].value == pytest.approx(theirs.item())


def test_a_mean_and_a_statistic_get_intervals_a_number_none_and_none_is_left_out(added: None) -> None:
    metrics.register("a_mean", better="max")(lambda out: out["loss"])
    metrics.register("a_statistic", better="max")(lambda out: lambda weights: (weights @ out["loss"].double()) ** 0)
    metrics.register("a_number", better="max")(lambda out: 3)
    metrics.register("a_nothing", better="max")(lambda out: None)
    found = measure(["a_number", "a_mean", "a_nothing", "a_statistic"], outputs())
    assert list(found) == ["a_number", "a_mean", "a_statistic"]
    assert found["a_number"] == Figure(3.0, None, None) and found["a_statistic"] == Figure(1.0, 1.0, 1.0)
    assert found["a_mean"].low < found["a_mean"].value < found["a_mean"].high  # type: ignore[operator]


@pytest.mark.parametrize(("right", "n"), [(0, 1), (7, 7), (3, 8), (0, 40), (985, 1000), (1, 10_000)])
def test_a_share_has_the_interval_that_scipy_gives_it(right: int, n: int) -> None:
    logits = torch.tensor([[0.0, 1.0]] * right + [[1.0, 0.0]] * (n - right))
    found = measure(["accuracy"], {"logits": logits, "label": torch.ones(n, dtype=torch.int64)})["accuracy"]
    theirs = binomtest(right, n).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_what_the_outputs_lack_is_said() -> None:
    with pytest.raises(InputError, match="metric bleu needs hypotheses and references"):
        measure(["bleu"], outputs())
    with pytest.raises(InputError, match="unknown metric"):
        measure(["accuracyy"], outputs())


@pytest.mark.parametrize("name", tasks.names())
def test_a_task_reports_registered_metrics_and_chooses_by_one_in_its_direction(name: str) -> None:
    entry = tasks.get(name)
    task = entry(entry.meta["spec_type"].typical(), None, None)
    assert all(metrics.get(metric) for metric in task.metrics)
    chosen, direction = task.best
    assert metrics.get(chosen).meta["better"] == direction


@pytest.mark.parametrize("name", metrics.names())
def test_each_says_its_direction_and_what_it_is(name: str) -> None:
    assert metrics.found[name].summary and metrics.found[name].meta["better"] in ("min", "max")


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("accuracy", 0.98765, "98.77%"), ("val_accuracy", 1.0, "100.00%"), ("test_top5_accuracy", 0.5, "50.00%"),
        ("val_accuracy_before", 0.25, "25.00%"), ("reward_accuracy", 0.5, "50.00%"), ("loss", 0.54891, "0.5489"),
        ("perplexity", 123456.7, "1.235e+05"), ("val_loss", 1e-6, "1e-06"), ("loss", 0.0, "0.0000"),
        ("best_epoch", 12, "12"), ("nobody_knows", 0.5, "0.5000"), ("accuracy", None, "-"),
    ],
)  # fmt: skip
def test_how_a_person_reads_it(name: str, value: float | None, shown: str) -> None:
    assert format_metric(name, value) == shown


def test_shares_are_what_is_registered_so_and_no_ending_of_a_name() -> None:
    assert is_share("val_accuracy") and not is_share("inaccuracy") and not is_share("macro_f1")
    assert format_interval("accuracy", {"value": 0.5, "low": 0.25, "high": None}) == "50.00% (25.00% .. ?)"
