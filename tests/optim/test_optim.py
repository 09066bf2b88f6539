"""Losses against torch's own, every optimizer on a problem with a known answer, schedules at their ends."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import losses, optimizers, schedules
from bigmodel_cli.optim.muon import Muon
from bigmodel_cli.optim.optimizers import decay_groups


def test_losses_are_torchs_per_sample() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 4), torch.randint(4, (6,))
    plain = losses.get("cross_entropy")()(logits, labels)
    assert plain.shape == (6,)
    torch.testing.assert_close(plain.mean(), F.cross_entropy(logits, labels))
    smooth = losses.get("cross_entropy")(label_smoothing=0.1)(logits, labels)
    by_hand = -(F.one_hot(labels, 4) * 0.9 + 0.1 / 4).mul(logits.log_softmax(1)).sum(1)
    torch.testing.assert_close(smooth, by_hand)
    squared = losses.get("mse")()(logits, labels)
    torch.testing.assert_close(squared.mean(), F.mse_loss(logits, F.one_hot(labels, 4).float()))
    torch.testing.assert_close(losses.get("mse")()(logits, F.one_hot(labels, 4).float()), squared)


@pytest.mark.parametrize("name", [n for n in losses.names() if "classes" in losses.get(n).meta["answers"]])
def test_losses_take_soft_targets(name: str) -> None:
    torch.manual_seed(0)
    logits, labels, share = torch.randn(6, 4), torch.randint(4, (6,)), 0.3
    loss = losses.get(name)()
    one_hot = F.one_hot(labels, 4).float()
    torch.testing.assert_close(loss(logits, one_hot), loss(logits, labels))
    mixed = share * one_hot + (1 - share) * one_hot.flip(0)
    if name == "cross_entropy":  # linear in the target, as mixup supposes
        expected = share * loss(logits, labels) + (1 - share) * loss(logits, labels.flip(0))
    else:
        expected = F.mse_loss(logits, mixed, reduction="none").mean(1)
    torch.testing.assert_close(loss(logits, mixed), expected)


@pytest.fixture
def not_compiled() -> Iterator[None]:
    with torch.compiler.set_stance("force_eager"):  # adamw8bit would compile for half a minute
        yield


@pytest.mark.usefixtures("not_compiled")
@pytest.mark.parametrize("name", optimizers.names())
def test_every_optimizer_goes_downhill_and_resumes(name: str) -> None:
    if name == "adamw8bit":
        pytest.importorskip("torchao")
    torch.manual_seed(0)
    target = torch.randn(3, 8)

    def build() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3))
        options = {} if name == "muon" else {"lr": {"adadelta": 5.0, "adagrad": 0.1}.get(name, 0.02)}
        return model, optimizers.get(name)(list(model.named_parameters()), **options)

    def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> list[float]:
        values = []
        for _ in range(count):
            loss = (model(torch.eye(8)).T - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            values.append(loss.item())
        return values

    model, optimizer = build()
    whole = steps(model, optimizer, 30)
    assert whole[-1] < 0.9 * whole[0]
    first, half = build()
    begun = steps(first, half, 10)
    second, rest = build()
    second.load_state_dict(first.state_dict())
    rest.load_state_dict(half.state_dict())
    assert begun + steps(second, rest, 20) == whole


def test_norms_and_biases_do_not_decay() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2))
    decayed, plain = decay_groups(list(model.named_parameters()), 0.1)
    assert decayed["weight_decay"] == 0.1 and [p.dim() for p in decayed["params"]] == [4, 2]
    assert plain["weight_decay"] == 0.0 and all(p.dim() == 1 for p in plain["params"])


@pytest.mark.parametrize("name", optimizers.names())
@pytest.mark.parametrize("field", ["lr", "weight_decay"])
@pytest.mark.parametrize("value", [-0.1, float("inf"), float("nan")])
def test_rates_and_decays_are_finite_and_not_negative(name: str, field: str, value: float) -> None:
    assert optimizers.get(name).options({field: 0.1}, "optimizer")[field] == 0.1
    with pytest.raises(ValidationError):
        optimizers.get(name).options({field: value}, "optimizer")


def test_muon_takes_hidden_matrices_and_filters_and_says_when_there_are_none() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(8, 6), nn.Linear(6, 3))
    optimizer = optimizers.get("muon")(list(model.named_parameters()), lr=0.5, adamw_lr=0.01)
    by_rate: dict[float, list[tuple[int, ...]]] = {0.5: [], 0.01: []}
    for group in optimizer.param_groups:
        by_rate[group["lr"]] += [tuple(p.shape) for p in group["params"]]
    assert by_rate == {0.5: [(2, 1, 3, 3), (6, 8)], 0.01: [(3, 6), (2,), (6,), (3,)]}
    with pytest.raises(InputError, match="no hidden matrix"):
        optimizers.get("muon")(list(nn.Linear(4, 2).named_parameters()))


def test_muon_is_torchs_on_matrices_and_treats_a_filter_as_one() -> None:
    torch.manual_seed(0)
    start, options = torch.randn(6, 36), {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
    theirs, matrix = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    filters = nn.Parameter(start.view(6, 4, 3, 3).to(memory_format=torch.channels_last))
    pairs = [(theirs, torch.optim.Muon([theirs], **options)), (matrix, Muon([matrix], **options))]
    pairs.append((filters, Muon([filters], **options)))
    alike = [
        nn.Parameter(start.clone()),
        nn.Parameter(torch.randn(36, 6)),
        nn.Parameter(2 * start),
        nn.Parameter(start.T),
    ]
    alone = [nn.Parameter(p.detach().clone()) for p in alike]
    together, one_by_one = Muon(alike, **options), [Muon([p], **options) for p in alone]
    for _ in range(3):
        grad = torch.randn(6, 36)
        for parameter, optimizer in pairs:
            parameter.grad = grad.view(parameter.shape)
            optimizer.step()
        for p, own, by_itself in zip(alike, alone, one_by_one, strict=True):
            p.grad = own.grad = torch.randn(p.shape)
            by_itself.step()
        together.step()
    for p, own in zip(alike, alone, strict=True):  # those of one shape are orthogonalized in one product
        torch.testing.assert_close(p, own)
    torch.testing.assert_close(matrix, theirs, atol=0.01, rtol=0)  # torch's is made orthogonal in bf16
    torch.testing.assert_close(filters.flatten(1), matrix)


def test_combined_steps_on_the_gradients_of_its_closure() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = optimizers.get("muon")(list(model.named_parameters()))

    def closure() -> float:
        loss = model(torch.ones(3, 4)).square().sum()
        loss.backward()
        return loss.item()  # type: ignore[no-any-return]

    assert optimizer.step(closure) > 0
    assert all((p != old).any() for p, old in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("name", schedules.names())
def test_schedules_warm_up_then_never_climb(name: str) -> None:
    factor = schedules.get(name)(100, warmup=0.2)
    values = [factor(i) for i in range(100)]
    assert all(a < b for a, b in pairwise(values[:20]))
    assert values[20] == 1.0 and max(values) == 1.0 and min(values) >= 0
    assert all(a >= b for a, b in pairwise(values[20:]))
    assert 0 <= factor(100) == factor(150) <= values[-1]


def test_schedule_ends() -> None:
    assert [schedules.get("step")(100)(i) for i in (0, 50, 75)] == pytest.approx([1, 0.1, 0.01])
    assert schedules.get("cosine")(100)(50) == pytest.approx(0.5)
    assert schedules.get("one_cycle")(100, warmup=0.0)(99) == pytest.approx(0.01)
    assert schedules.get("constant")(100)(99) == 1
