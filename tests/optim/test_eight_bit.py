"""AdamW of 8 bits: it learns like AdamW, takes a quarter of its memory, and goes on from its state bit by bit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bigmodel_cli.core.registry import optimizers

pytest.importorskip("torchao")


@pytest.fixture(autouse=True)
def not_compiled() -> Iterator[None]:
    with torch.compiler.set_stance("force_eager"):
        yield


def train(name: str, steps: int, model: nn.Module, optimizer: Any) -> list[float]:
    x = torch.randn(64, 128, generator=torch.Generator().manual_seed(1))
    losses = []
    for _ in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3
        loss = (model(x) - x.roll(1, 1)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def built(name: str) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = nn.Linear(128, 128)
    return model, optimizers.get(name)(list(model.named_parameters()), lr=2e-3)


def size(value: Any) -> int:
    """Bytes of the tensors in a state, but for the table that all of them share."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(size(v) for k, v in value.items() if k != "qmap") if isinstance(value, dict) else 0


def test_it_learns_like_adamw_in_a_quarter_of_the_memory() -> None:
    plain, small = built("adamw"), built("adamw8bit")
    expected, found = train("adamw", 60, *plain), train("adamw8bit", 60, *small)
    assert found[-1] < found[0] / 2 and found[-1] == pytest.approx(expected[-1], rel=0.1)
    assert size(small[1].state_dict()["state"]) < 0.3 * size(plain[1].state_dict()["state"])


def test_a_saved_state_is_plain_and_goes_on_bit_by_bit() -> None:
    model, optimizer = built("adamw8bit")
    train("adamw8bit", 5, model, optimizer)
    kinds = {type(v) for s in optimizer.state_dict()["state"].values() for v in s.values()}
    assert kinds == {Tensor, dict}
    other, again = built("adamw8bit")
    other.load_state_dict(model.state_dict())
    again.load_state_dict(optimizer.state_dict())
    assert train("adamw8bit", 5, other, again) == train("adamw8bit", 5, model, optimizer)
