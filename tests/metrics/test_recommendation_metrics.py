"""Ranks and ranking metrics, against sorting and torchmetrics."""

from __future__ import annotations

import pytest
import torch
from torchmetrics.functional.retrieval import retrieval_normalized_dcg, retrieval_recall, retrieval_reciprocal_rank

from bigmodel_cli.insight.recommendation import paired
from bigmodel_cli.metrics.intervals import measure
from bigmodel_cli.models.layers.item_baselines import ease_weights
from bigmodel_cli.tasks.catalogue import hide, ranks


def case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores (B,I) with many ties, histories and held-out items, which differ."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 12, (50, 40), generator=generator).float()
    order = torch.stack([torch.randperm(40, generator=generator) for _ in range(50)])
    history = order[:, :6] + 1
    history[::3, 3:] = 0
    relevant = order[:, 6:10].clone()
    relevant[::2, 2:] = -1
    return scores, history, relevant


def test_ranks_are_those_of_a_stable_sort_without_what_was_seen() -> None:
    scores, history, relevant = case()
    found = ranks(hide(scores, history), relevant)
    for row in range(len(scores)):
        seen = set(history[row].tolist())
        order = sorted((i for i in range(40) if i + 1 not in seen), key=lambda i: (-float(scores[row, i]), i))
        wanted = [order.index(i) + 1 if i >= 0 else 0 for i in relevant[row].tolist()]
        assert found[row].tolist() == wanted


def test_metrics_agree_with_torchmetrics() -> None:
    scores, history, relevant = case()
    place = torch.arange(40).float()
    scores = 1 + scores - place * 1e-3  # no ties, which torchmetrics orders at random; above 0, or it ignores them
    hidden = hide(scores, history)
    figures = measure(("ndcg_10", "mrr", "recall_10"), {"rank": ranks(hidden, relevant)})
    wanted = torch.zeros(3, dtype=torch.float64)
    for row, items in zip(hidden, relevant, strict=True):
        target = torch.zeros(40, dtype=torch.bool)
        target[items[items >= 0]] = True
        allowed = row.isfinite()
        given = row[allowed], target[allowed]
        wanted += torch.stack([
            retrieval_normalized_dcg(*given, top_k=10), retrieval_reciprocal_rank(*given),
            retrieval_recall(*given, top_k=10),
        ]).double() / len(relevant)  # fmt: skip
    assert [f.value for f in figures.values()] == pytest.approx(wanted.tolist(), abs=1e-6)


def test_a_model_without_an_opinion_gains_nothing_from_ties() -> None:
    generator = torch.Generator().manual_seed(1)
    relevant = torch.randint(0, 100, (2000, 1), generator=generator)
    found = ranks(torch.zeros(2000, 100), relevant)
    assert found.double().mean().item() == pytest.approx(50.5, abs=2)


def test_pairing_narrows_the_interval_of_a_difference() -> None:
    generator = torch.Generator().manual_seed(2)
    theirs = torch.rand(300, generator=generator)
    better = paired(theirs + 0.01 + 0.001 * torch.rand(300, generator=generator), theirs)
    assert better.low is not None and better.low > 0
    shuffled = paired((theirs + 0.01)[torch.randperm(300, generator=generator)], theirs)
    assert shuffled.low is not None and shuffled.low < 0


def test_ease_solves_its_constrained_regression() -> None:
    """Steck 2019, equation 4: each column is the ridge regression of an item on the others."""
    generator = torch.Generator().manual_seed(3)
    held = (torch.rand(60, 8, generator=generator) < 0.3).double()
    weights = ease_weights(held.t() @ held, 2.0)
    for item in range(8):
        others = [i for i in range(8) if i != item]
        x = held[:, others]
        alone = torch.linalg.solve(x.t() @ x + 2.0 * torch.eye(7), x.t() @ held[:, item])
        torch.testing.assert_close(weights[others, item], alone)
