"""Recommenders: what they may look at, what they learn, and their parts against plain formulas."""

from __future__ import annotations

import math

import pytest
import torch

from bigmodel_cli.core.interactions import Column, HasVectors, InteractionSpec, NextItems
from bigmodel_cli.core.registry import losses, models, tasks
from bigmodel_cli.core.types import Batch, SampleKey
from bigmodel_cli.data.interactions.sources import Ragged, Windows
from bigmodel_cli.models.layers.bayesian_factors import sample_factors
from bigmodel_cli.models.layers.catalogue_loss import candidate_gbce, candidate_softmax, full_softmax

GENRE = Column("genre", ("a", "b", "c"), tuple((k % 3,) if k % 4 else () for k in range(30)))
SPEC = InteractionSpec(12, 30, 8, 1.0, 5.0, 3.0, item_counts=tuple(range(30)), item_columns=(GENRE,))
OF = {name: models.get(name).meta["task"] for name in models.names()}
RANKERS = [name for name, task in OF.items() if task == "recommendation"]
RATERS = [name for name, task in OF.items() if task == "rating_prediction"]


def windows() -> Batch:
    """Users who walk through the catalogue, each from another item on."""
    rows = torch.cat([(torch.arange(6) + 2 * u) % 30 + 1 for u in range(12)])
    past = Ragged(rows, torch.arange(13) * 6)
    return Windows.of(past, past, 8, "train").gather(torch.arange(12))


def task_of(name: str, spec: InteractionSpec = SPEC) -> object:
    loss = losses.get("mse" if OF[name] == "rating_prediction" else "cross_entropy")()
    return tasks.get(OF[name])(spec, loss, None)


@pytest.mark.parametrize("name", RANKERS)
def test_a_later_item_changes_no_earlier_state(name: str) -> None:
    torch.manual_seed(0)
    model, task = models.get(name)(SPEC).eval(), task_of(name)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    raw = windows()
    batch = task.prepare(raw, SampleKey(0, 0, raw["index"]))  # type: ignore[attr-defined]
    changed = dict(batch, history=batch["history"].clone())
    changed["history"][:, 4] = 1

    def of(b: Batch) -> torch.Tensor:
        wanted = NextItems(b["targets"], b["seen"], b["noise"], losses.get("cross_entropy")())
        return model(b["user"], b["history"], wanted)

    before, after = of(batch), of(changed)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4], after[:, 4])


@pytest.mark.parametrize("name", [n for n in RANKERS if n != "ease"])
def test_training_finds_the_next_item(name: str) -> None:
    torch.manual_seed(0)
    model, task, raw = models.get(name)(SPEC, dropout=0.0), task_of(name), windows()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for epoch in range(60):
        loss = task.loss(model, task.prepare(raw, SampleKey(0, epoch, raw["index"])))  # type: ignore[attr-defined]
        optimizer.zero_grad()
        (loss.total / loss.count).backward()
        optimizer.step()
    history = raw["items"][:, :-1].clamp(min=0)
    following = raw["items"][:, -1:] - 1
    held = {"user": raw["user"], "history": history[:, 1:], "relevant": following, "index": raw["index"]}
    out = task.outputs(model.eval(), held)  # type: ignore[attr-defined]
    assert out["rank"].double().mean() < 4, "of 25 that are left"


@pytest.mark.parametrize("name", [*RANKERS, *RATERS])
def test_scores_are_dot_products_of_the_vectors(name: str) -> None:
    torch.manual_seed(0)
    model = models.get(name)(SPEC).eval()
    if not isinstance(model, HasVectors):
        pytest.skip("no vectors")
    user, history = torch.arange(5), torch.randint(1, 31, (5, 12))
    dots = model.user_vectors(user, history) @ model.item_vectors().t()
    task = task_of(name)
    scores = task.scores(model, user, history)  # type: ignore[attr-defined]
    torch.testing.assert_close(dots + (SPEC.mean if name == "mf" else 0), scores)


def test_candidates_estimate_the_softmax_of_the_whole_catalogue() -> None:
    """With every item as a candidate of probability 1, the two losses are equal, but for what the user has seen."""
    torch.manual_seed(0)
    x, vectors, targets = torch.randn(3, 5, 4), torch.randn(30, 4), torch.randint(0, 30, (3, 5))
    targets[:, 4] = -100
    loss = losses.get("cross_entropy")()
    own, every, nothing = vectors[targets.clamp(min=0)], torch.arange(30), torch.zeros(3, 1, dtype=torch.int64)
    found = candidate_softmax(x, targets, own, every, vectors, torch.zeros(30), nothing, loss)
    torch.testing.assert_close(found, full_softmax(x, targets, vectors, loss))
    seen = torch.tensor([[4, 9], [1, 0], [0, 0]])
    masked = candidate_softmax(x, targets, own, every, vectors, torch.zeros(30), seen, loss)
    for b, gone in enumerate([{3, 8}, {0}, set()]):
        for t in range(4):
            target = int(targets[b, t])
            kept = [i for i in range(30) if i == target or i not in gone]
            logits = vectors[kept] @ x[b, t]
            wanted = logits.logsumexp(0) - vectors[target] @ x[b, t]
            torch.testing.assert_close(masked[b, t], wanted)


@pytest.mark.parametrize("calibration", [0.0, 0.75, 1.0])
def test_gbce_is_its_formula_with_known_positives_left_out(calibration: float) -> None:
    torch.manual_seed(0)
    x, vectors, targets = torch.randn(2, 3, 4), torch.randn(30, 4), torch.randint(0, 30, (2, 3))
    ids, seen = torch.tensor([2, 5, 9, 11]), torch.tensor([[3, 12], [6, 0]])  # items 2 and 11; item 5
    found = candidate_gbce(x, targets, vectors[targets], ids, vectors[ids], seen, 30, calibration)
    rate = 4 / 29
    power = rate * (calibration * (1 - 1 / rate) + 1 / rate)
    for b, gone in enumerate([{2, 11}, {5}]):
        for t in range(3):
            positive = float(vectors[targets[b, t]] @ x[b, t])
            others = [float(vectors[i] @ x[b, t]) for i in ids.tolist() if i not in gone | {int(targets[b, t])}]
            wanted = -power * math.log(1 / (1 + math.exp(-positive)))
            wanted -= sum(math.log(1 - 1 / (1 + math.exp(-n))) for n in others) / 4
            assert float(found[b, t]) == pytest.approx(wanted, rel=1e-4)


def test_sampling_draws_every_window_by_its_own_key() -> None:
    raw, task = windows(), task_of("sasrec")
    one, two = (task.prepare(raw, SampleKey(0, epoch, raw["index"]))["noise"] for epoch in (0, 1))  # type: ignore[attr-defined]
    part = {k: v[3:5] for k, v in raw.items()}
    again = task.prepare(part, SampleKey(0, 0, part["index"]))["noise"]  # type: ignore[attr-defined]
    assert torch.equal(one[3:5], again) and not torch.equal(one, two)


def rank_two(noise: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Half the entries of a noisy matrix of rank 2 with biases: users, items, ratings, and the matrix without noise."""
    generator = torch.Generator().manual_seed(0)
    x, z = torch.randn(60, 2, generator=generator), torch.randn(40, 2, generator=generator)
    truth = x @ z.t() + torch.randn(60, 1, generator=generator)
    user, item = (torch.rand(60, 40, generator=generator) < 0.5).nonzero().unbind(1)
    rating = truth[user, item] + noise * torch.randn(len(user), generator=generator)
    return user, item, rating, truth


def test_the_posterior_mean_finds_a_matrix_from_half_of_it() -> None:
    user, item, rating, truth = rank_two(0.3)
    none = torch.zeros(60, 0), torch.zeros(40, 0)
    drawn = list(sample_factors(user, item, rating - rating.mean(), *none, 4, 80, 20, 30, 0))
    assert len(drawn) == 30
    predicted = torch.stack([x[:, :-1] @ z[:, :-1].t() + x[:, -1:] + z[:, -1] for x, z in drawn]).mean(0)
    missing = torch.ones(60, 40, dtype=torch.bool)
    missing[user, item] = False
    error = (predicted + rating.mean() - truth)[missing].square().mean().sqrt()
    single = drawn[-1][0][:, :-1] @ drawn[-1][1][:, :-1].t() + drawn[-1][0][:, -1:] + drawn[-1][1][:, -1]
    assert error < 0.3 < truth.std() / 3
    assert error < (single + rating.mean() - truth)[missing].square().mean().sqrt(), "averaging helps"


def test_attributes_tell_of_users_without_ratings() -> None:
    user, item, rating, truth = rank_two(0.1)
    about = torch.nn.functional.one_hot(torch.arange(60) % 3, 3).float()
    truth = truth + 3 * about @ torch.tensor([-1.0, 0.0, 1.0])[:, None]
    rating = rating + 3 * (about @ torch.tensor([-1.0, 0.0, 1.0]))[user]
    kept = user >= 6
    drawn = list(sample_factors(user[kept], item[kept], rating[kept], about, torch.zeros(40, 0), 4, 80, 20, 30, 0))
    bias = torch.stack([x[:6, -1] for x, _ in drawn]).mean(0)
    for cold, of_group in enumerate((-3, 0, 3, -3, 0, 3)):
        assert math.isclose(float(bias[cold]), of_group, abs_tol=1.5)
