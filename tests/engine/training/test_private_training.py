"""Differential privacy: what a step adds, what the steps spend, and what is refused because it cannot be counted."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from opacus.accountants import PRVAccountant, RDPAccountant
from opacus.accountants.utils import get_noise_multiplier
from torch import Tensor, nn

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.core.types import SampleKey
from bigmodel_cli.data.poisson_batches import PoissonBatches
from bigmodel_cli.engine.checkpoint import checkpoint
from bigmodel_cli.engine.training.assemble import assemble
from bigmodel_cli.engine.training.loop import fit, train_step
from bigmodel_cli.engine.training.privacy_budget import default_delta, epsilon, noise_for
from bigmodel_cli.engine.training.private_gradients import PrivateGradient
from bigmodel_cli.engine.training.run import Hooks, Run

IMAGES = {"name": "synthetic_images", "size": 12, "channels": 1, "classes": 3, "count": 160}
TEXT = {"name": "synthetic_text", "vocabulary": 32, "context": 16, "tokens": 1536}
GPT = {"name": "gpt", "layers": 1, "heads": 2, "width": 16}


def recipe(model: dict[str, Any], data: dict[str, Any] = IMAGES, **sections: Any) -> Any:
    values: dict[str, Any] = {
        "model": model,
        "data": data,
        "augment": {"name": "none"},
        "optimizer": {"name": "sgd", "lr": 0.1},
        "schedule": {"name": "constant"},
        "train": {"epochs": 2, "batch_size": 24, **sections.pop("train", {})},
        "privacy": {"epsilon": 8, "noise_seed": 1, "accountant": "rdp", **sections.pop("privacy", {})},
        "placement": {"device": "cpu", "precision": "fp32", "compile": False},
        **sections,
    }
    return resolve([Layer("test", values)]).recipe


def build(*args: Any, resumed: Any = None, **sections: Any) -> Run:
    events: list[Any] = []
    run = assemble(recipe(*args, **sections), resumed, measure=False, hooks=Hooks(events.append))
    run.meta["events"] = events
    return run


def private(run: Run) -> PrivateGradient:
    assert isinstance(run.gradients, PrivateGradient)
    return run.gradients


def start(folder: Path, model: dict[str, Any], name: str = "elsewhere") -> str:
    """A checkpoint of `model` that was trained without privacy, on the data called `name`."""
    plain = recipe(model).model_copy(update={"privacy": recipe(model).privacy.model_copy(update={"epsilon": None})})
    state = assemble(plain, measure=False).state()
    if name != IMAGES["name"]:
        state["meta"]["data"] |= {"name": name, "fingerprint": "other"}
    checkpoint.save(folder / "start.pt", state)
    return str(folder / "start.pt")


def by_hand(run: Run, indices: Tensor, most: float) -> dict[str, Tensor]:
    """The sum of the samples' clipped gradients: one forward and one backward pass for each."""
    module = run.model.get_submodule(run.submodule)
    total = {name: torch.zeros_like(p) for name, p in module.named_parameters() if p.requires_grad}
    for index in indices:
        raw = run.batches.source.gather(index[None])
        micro = run.task.prepare(run.placement.batch(raw), SampleKey(run.recipe.train.seed, 0, raw["index"]))
        found = run.task.loss(module, micro)
        module.zero_grad()
        (found.total / found.count).backward()
        mine = {n: p.grad for n, p in module.named_parameters() if p.requires_grad and p.grad is not None}
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in mine.values()))
        for name, g in mine.items():
            total[name] += g * min(1.0, most / norm)
    module.zero_grad()
    return total


CASES = {
    "cnn": ({"name": "cnn"}, IMAGES, {}, True),
    "groupnorm": ({"name": "resnet8"}, IMAGES, {}, True),
    "gpt with a tied head": (GPT, TEXT, {}, True),
    "cached features": ({"name": "cnn"}, IMAGES, {"method": "freeze-backbone"}, None),
    "adapters": ({"name": "cnn"}, IMAGES, {"method": "lora", "rank": 2}, True),
    "a loss past the model": ({"name": "cnn"}, IMAGES, {"method": "l2-sp", "alpha": 5.0}, False),
}


@pytest.mark.parametrize("case", CASES)
def test_a_step_is_the_sum_of_clipped_gradients_and_noise(case: str, tmp_path: Path) -> None:
    model, data, section, vectorised = CASES[case]
    if section:
        section = {"checkpoint": start(tmp_path, model), **section}
    most = 0.05  # less than most norms
    run = build(model, data, start=section, privacy={"clip_norm": most})
    run.train_mode()
    batches = run.batches
    assert isinstance(batches, PoissonBatches)
    drawn = batches.drawn(0, 0)
    expected = by_hand(run, drawn, most)
    module = run.model.get_submodule(run.submodule)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    budget = private(run).budget
    private(run).budget = type(budget)(**{**vars(budget), "noise": 0.0})
    train_step(run, next(batches.steps(0)))
    expected_batch = len(batches.source) / batches.steps_per_epoch
    for name, p in module.named_parameters():
        step = torch.zeros_like(p) if name not in expected else -0.1 * expected[name] / expected_batch
        torch.testing.assert_close(p.detach() - before[name], step, rtol=1e-3, atol=1e-6)
    assert any(float(g.abs().max()) > 0 for g in expected.values())
    assert private(run).vectorised is vectorised  # one after the other only where it must be, and it says so
    told = [e for e in run.meta["events"] if "one sample after the other" in e.get("message", "")]
    assert len(told) == (vectorised is False)


def test_the_noise_has_the_deviation_that_is_accounted_for() -> None:
    run = build({"name": "mlp"}, privacy={"clip_norm": 0.3})
    own = private(run)
    own.finish(run)
    found = torch.cat([p.grad.flatten() for p in run.model.parameters() if p.grad is not None])
    told = own.budget.noise * 0.3 / own.expected_batch
    assert len(found) > 5000
    assert float(found.std()) == pytest.approx(told, rel=5 / math.sqrt(2 * len(found)))
    assert abs(float(found.mean())) < 5 * told / math.sqrt(len(found))
    run.progress.step += 1
    run.optimizer.zero_grad()
    own.finish(run)
    again = torch.cat([p.grad.flatten() for p in run.model.parameters() if p.grad is not None])
    assert abs(float(torch.corrcoef(torch.stack((found, again)))[0, 1])) < 5 / math.sqrt(len(found))


def test_batches_are_drawn_sample_by_sample() -> None:
    run = build({"name": "mlp"})
    batches, n = run.batches, len(run.batches.source)
    assert isinstance(batches, PoissonBatches)
    steps = [batches.drawn(epoch, step) for epoch in range(300) for step in range(batches.steps_per_epoch)]
    counts = torch.cat(steps).bincount(minlength=n).double()
    mean, deviation = len(steps) * batches.rate, math.sqrt(len(steps) * batches.rate * (1 - batches.rate))
    assert (counts - mean).abs().max() < 5 * deviation
    assert counts.std() == pytest.approx(deviation, rel=5 / math.sqrt(2 * n))
    sizes = torch.tensor([float(len(step)) for step in steps])
    assert sizes.std() == pytest.approx(math.sqrt(n * batches.rate * (1 - batches.rate)), rel=0.1)


def test_a_step_that_drew_nobody_is_noise_alone() -> None:
    run = build({"name": "cnn"}, data={**IMAGES, "count": 12}, train={"batch_size": 2})
    assert isinstance(run.batches, PoissonBatches)
    empty = next(e for e in range(1000) if not len(run.batches.drawn(e, 0)))
    run.progress.epoch = empty
    before = [p.detach().clone() for p in run.model.parameters()]
    result = train_step(run, next(run.batches.steps(empty)))
    assert result.count == 0 and bool(result.finite)
    assert not any(torch.equal(a, b) for a, b in zip(before, run.model.parameters(), strict=True))


@pytest.mark.parametrize("accountant", ["rdp", "prv"])
def test_epsilon_is_that_of_opacus(accountant: str) -> None:
    rate, steps, delta = 1 / 50, 400, 1e-5
    kind: Any = {"rdp": RDPAccountant, "prv": PRVAccountant}[accountant]
    theirs = kind()
    for _ in range(steps):
        theirs.step(noise_multiplier=1.1, sample_rate=rate)
    assert epsilon(((1.1, rate, steps),), delta, accountant) == pytest.approx(theirs.get_epsilon(delta))
    assert epsilon(((1.1, rate, 0),), delta, accountant) == 0
    mine = noise_for(2.0, delta, rate, steps, accountant)
    if accountant == "rdp":
        found = get_noise_multiplier(
            target_epsilon=2.0, target_delta=delta, sample_rate=rate, steps=steps, accountant="rdp"
        )
        assert mine == pytest.approx(found, rel=0.01)
    assert epsilon(((mine, rate, steps),), delta, accountant) <= 2.0
    assert [default_delta(n) for n in (1294, 57000, 100000)] == pytest.approx([1e-4, 1e-5, 1e-6])


def test_resuming_goes_on_with_the_account(tmp_path: Path) -> None:
    whole = build({"name": "mlp"})
    assert fit(whole)

    def save(run: Run, best: bool) -> None:
        checkpoint.save(tmp_path / f"{run.progress.epoch}.pt", run.state())

    assert fit(assemble(recipe({"name": "mlp"}), measure=False, hooks=Hooks(save=save)))
    half = checkpoint.load(tmp_path / "1.pt")
    resumed = build({"name": "mlp"}, resumed=half)
    told = half["meta"]["privacy"]
    assert 0 < told["spent"] < private(resumed).spent(whole)["epsilon"] <= 8
    assert fit(resumed)
    assert resumed.gradients.spent(resumed) == whole.gradients.spent(whole)
    for a, b in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(a, b)
    told = checkpoint.load(tmp_path / "2.pt")["meta"]["privacy"]
    assert (told["spent"], told["steps"]) == (whole.gradients.spent(whole)["epsilon"], whole.total_steps)
    with pytest.raises(InputError, match="would spend epsilon"):
        build({"name": "mlp"}, resumed=half, train={"epochs": 40})
    shorter = build({"name": "mlp"}, resumed=half, train={"epochs": 1})
    assert private(shorter).budget == private(resumed).budget
    del half["meta"]["privacy"]
    with pytest.raises(InputError, match="does not say"):
        build({"name": "mlp"}, resumed=half)


def test_without_a_seed_nobody_can_repeat_the_noise() -> None:
    keys = {private(build({"name": "mlp"}, privacy={"noise_seed": None})).key for _ in range(2)}
    assert len(keys) == 2
    seeded = build({"name": "mlp"})
    assert any("nothing is hidden" in line for line in seeded.notes)
    assert any("not accounted for" in line for line in seeded.notes)


class Remembers(nn.Module):
    """A layer with a buffer that follows the samples, as BatchNorm's statistics do."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.seen += x.mean()
        return self.inner(x)  # type: ignore[no-any-return]


def test_what_cannot_be_accounted_for_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(match: str, model: str = "cnn", **sections: Any) -> None:
        with pytest.raises(InputError, match=match):
            build({"name": model}, **sections)

    refused("train.balance", train={"balance": "sampling"})
    refused("train.skip_nonfinite", train={"skip_nonfinite": 2})
    refused("mixes samples", augment={"name": "strong", "mixup": 0.2})
    refused("cannot be reached", privacy={"epsilon": 1e-4})
    refused("computed from samples", model="airbench", data={**IMAGES, "size": 32, "channels": 3})
    other = start(tmp_path, {"name": "cnn"})
    refused("solved for", start={"checkpoint": other, "method": "probe"})
    same = start(tmp_path, {"name": "cnn"}, IMAGES["name"])
    refused("nothing can add later", start={"checkpoint": same, "method": "full"})
    with pytest.raises(InputError, match="statistics mix samples"):
        build({"name": "resnet8", "batchnorm": "own"})
    ratings = {"name": "synthetic_interactions", "users": 12, "items": 9, "length": 4, "held_out": 6}
    refused("not a person", model="mf", data=ratings)
    from bigmodel_cli.engine.build import model as built

    real = built.build_architecture
    monkeypatch.setattr(built, "build_architecture", lambda *args: Remembers(real(*args)))
    refused("seen follow the samples")


def test_batchnorm_of_a_start_keeps_its_statistics(tmp_path: Path) -> None:
    section = {"checkpoint": start(tmp_path, {"name": "resnet8"}), "method": "full"}
    run = build({"name": "resnet8"}, start=section)
    before = {name: b.clone() for name, b in run.model.named_buffers()}
    assert before and any("keep the statistics" in line for line in run.notes)
    assert fit(run)
    assert all(torch.equal(before[name], b) for name, b in run.model.named_buffers())
    from_zero = build({"name": "resnet8"})
    assert not any(isinstance(m, nn.BatchNorm2d) for m in from_zero.model.modules())
    assert any("GroupNorm in place of BatchNorm" in line for line in from_zero.notes)
