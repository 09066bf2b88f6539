"""BatchNorm's running statistics begin at the first batch, and only where nothing was gathered before."""

from __future__ import annotations

import math
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.engine.training import loop
from bigmodel_cli.engine.training.assemble import assemble
from bigmodel_cli.engine.training.run import Event, Hooks
from bigmodel_cli.engine.training.running_statistics import begun_by_first_batch


@pytest.mark.parametrize("parts", [1, 3])
def test_they_are_the_average_of_the_batches_alone(parts: int) -> None:
    """The oracle: weights 0.1, 0.09, 0.081 of the batches' means and unbiased variances, divided by their sum."""
    layer = nn.BatchNorm2d(4)
    batches = [torch.randn(8, 4, 5, 5, generator=torch.Generator().manual_seed(n)) * 0.01 + n for n in range(parts)]
    with begun_by_first_batch(layer):
        for batch in batches:
            layer(batch)
    weights = torch.tensor([0.1 * 0.9 ** (parts - 1 - n) for n in range(parts)])
    weights = (weights / weights.sum()).unsqueeze(1)
    means = torch.stack([batch.mean((0, 2, 3)) for batch in batches])
    variances = torch.stack([batch.var((0, 2, 3)) for batch in batches])
    torch.testing.assert_close(layer.running_mean, (weights * means).sum(0))
    torch.testing.assert_close(layer.running_var, (weights * variances).sum(0), rtol=1e-4, atol=0.0)


def test_statistics_that_are_there_are_averaged_as_ever() -> None:
    """Published statistics (files may lack the counter), a layer in eval mode, and one that no batch reached."""
    published, held, unused, without = nn.BatchNorm1d(2), nn.BatchNorm1d(2), nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    published.running_mean.fill_(3)
    held.eval()
    without.momentum = None  # a plain average over all batches already leaves the initial values out
    x = torch.randn(16, 2)
    with begun_by_first_batch(nn.ModuleList([published, held, unused, without])):
        published(x), held(x), without(x)
    torch.testing.assert_close(published.running_mean, 0.9 * torch.full((2,), 3.0) + 0.1 * x.mean(0))
    torch.testing.assert_close(published.running_var, 0.9 + 0.1 * x.var(0))
    torch.testing.assert_close(without.running_var, x.var(0))
    for layer in (held, unused):
        assert torch.equal(layer.running_mean, torch.zeros(2)) and torch.equal(layer.running_var, torch.ones(2))


def val_loss(monkeypatch: pytest.MonkeyPatch, plain: bool) -> float:
    """Validation loss of a resnet18 after one epoch of 11 steps."""
    if plain:
        monkeypatch.setattr(loop, "begun_by_first_batch", lambda model: nullcontext())
    values = {"model": {"name": "resnet18"}, "data": {"name": "digits"}, "train": {"epochs": 1, "batch_size": 128}}
    found: list[Event] = []
    loop.fit(assemble(resolve([Layer("test", values)]).recipe, measure=False, hooks=Hooks(on_event=found.append)))
    [epoch] = [event for event in found if event["event"] == "epoch"]
    return float(epoch["val_loss"])


def test_a_short_run_validates_what_it_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, plain = val_loss(monkeypatch, plain=False), val_loss(monkeypatch, plain=True)
    assert ours < math.log(10) - 0.3 and ours < plain - 0.3, (ours, plain)
