"""Dropout with shared random numbers drops what it says, scales it, and repeats with the seed."""

from __future__ import annotations

import pytest
import torch

from bigmodel_cli.models.layers.dropout import PER_DRAW, Dropout


@pytest.mark.parametrize("p", [0.1, 0.3, 0.9])
def test_each_element_is_dropped_at_the_rate_and_independently(p: float) -> None:
    torch.manual_seed(0)
    n = 400_001  # no multiple of the elements that share a draw
    x = torch.randn(n, requires_grad=True)
    y = Dropout(p)(x)
    kept = (y != 0).double()
    torch.testing.assert_close(y[kept > 0], x[kept > 0] / (1 - p), rtol=1e-4, atol=0)
    error = 5 * (p * (1 - p) / (n // PER_DRAW)) ** 0.5
    together = kept[: n // PER_DRAW * PER_DRAW].view(-1, PER_DRAW)
    assert (together.mean(0) - (1 - p)).abs().max() < error, "of each of the elements that share a draw"
    correlation = together.T.corrcoef() - torch.eye(PER_DRAW)
    assert correlation.abs().max() < 5 * (n // PER_DRAW) ** -0.5
    y.backward(torch.ones(n))
    assert x.grad is not None
    torch.testing.assert_close(x.grad, kept.float() / (1 - p), rtol=1e-4, atol=0)


def test_the_seed_repeats_it_and_evaluation_and_vmap_are_as_in_torch() -> None:
    drop, x = Dropout(0.5), torch.randn(3, 5, 7)
    torch.manual_seed(1)
    first = drop(x)
    torch.manual_seed(1)
    assert drop(x).equal(first)
    assert not drop(x).equal(first)
    assert drop.eval()(x) is x or drop(x).equal(x)
    drop.train()
    own = torch.func.vmap(drop, randomness="different")(torch.ones(64, 9))
    assert len(own.unique(dim=0)) > 32
    assert Dropout(1.0)(x).eq(0).all()
    assert Dropout(0.0)(x).equal(x)
    assert torch.func.vmap(drop, randomness="same")(torch.ones(64, 9)).unique(dim=0).shape == (1, 9)
