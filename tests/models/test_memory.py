"""What is not kept: the logits of a large vocabulary, and activations under checkpointing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from bigmodel_cli.core.registry import models
from bigmodel_cli.core.types import TextSpec
from bigmodel_cli.models.layers import chunked_loss
from bigmodel_cli.models.layers.chunked_loss import chunked_cross_entropy

N, WIDTH, VOCABULARY = 700, 8, 50_257


class Largest(TorchDispatchMode):
    """The largest floating tensor that any operation gave, in elements, forward and backward."""

    seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, Tensor) and x.is_floating_point():
                self.seen = max(self.seen, x.numel())
        return out


def cross_entropy(smoothing: float) -> Any:
    return lambda z, y: F.cross_entropy(z, y, reduction="none", label_smoothing=smoothing)


def trained(smoothing: float) -> tuple[int, Tensor, Tensor, Tensor]:
    """The largest tensor, then losses and gradients of the input and the head."""
    torch.manual_seed(0)
    head, x = nn.Linear(WIDTH, VOCABULARY, bias=False), torch.randn(N, WIDTH, requires_grad=True)
    targets = torch.randint(VOCABULARY, (N,))
    targets[:9] = -100
    with Largest() as largest:
        losses = chunked_cross_entropy(head, x, targets, cross_entropy(smoothing))
        (losses * torch.linspace(0.5, 1, N)).sum().backward()
    assert x.grad is not None and head.weight.grad is not None
    return largest.seen, losses.detach(), x.grad, head.weight.grad


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_whole_logits_are_never_there_and_nothing_else_changes(
    smoothing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    most, losses, *gradients = trained(smoothing)
    assert most <= chunked_loss.MAX_CHUNK_LOGITS < N * VOCABULARY
    assert not losses[:9].any() and losses[9:].all()
    monkeypatch.setattr(chunked_loss, "MAX_CHUNK_LOGITS", 1 << 40)
    whole, expected, *theirs = trained(smoothing)
    assert whole == N * VOCABULARY  # the measure can tell
    torch.testing.assert_close(losses, expected, atol=1e-5, rtol=0)
    for ours, plain in zip(gradients, theirs, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=0)


def test_torch_has_the_same_loss_where_it_has_one() -> None:
    if not hasattr(F, "linear_cross_entropy"):
        pytest.skip("this torch has no linear_cross_entropy")
    head, x, targets = nn.Linear(WIDTH, 301, bias=False), torch.randn(50, WIDTH), torch.randint(301, (50,))
    theirs = F.linear_cross_entropy(x, head.weight, targets, reduction="none")
    torch.testing.assert_close(chunked_cross_entropy(head, x, targets, cross_entropy(0.0)), theirs, atol=1e-5, rtol=0)


def kept(model: nn.Module, inputs: tuple[Tensor, ...], targets: Tensor) -> tuple[int, Tensor, list[Tensor]]:
    """Bytes saved for the gradient, the loss, and the gradients; dropout drawn from one seed."""
    size = 0

    def pack(x: Tensor) -> Tensor:
        nonlocal size
        size += x.numel() * x.element_size()
        return x

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = model(*inputs, targets, cross_entropy(0.0)).sum()
    before = size
    loss.backward()
    return before, loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("name", ["gpt", "transformer"])
def test_checkpointing_keeps_less_and_gives_the_same_gradients(name: str) -> None:
    spec = TextSpec.typical()
    inputs = tuple(torch.randint(4, 256, (4, 64)) for _ in range(1 + (name == "transformer")))
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        options = {"layers": 4, "width": 64, "dropout": 0.1, "checkpointing": checkpointing}
        found.append(kept(models.get(name)(spec, **options).train(), inputs, torch.randint(4, 256, (4, 64))))
    (plain, loss, gradients), (less, again, theirs) = found
    assert less < plain / 3
    torch.testing.assert_close(again, loss)
    torch.testing.assert_close(theirs, gradients)
