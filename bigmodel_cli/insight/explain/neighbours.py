"""The training samples that are most like one, by the features that the head of the model takes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

MOST = 5000
"""The most training samples that are looked at, evenly spaced."""


def features(model: nn.Module, head: str, inputs: Tensor) -> Tensor:
    """(B,D) what the layer called `head` takes, for inputs (B,...), scaled to length 1."""
    captured: list[Tensor] = []
    handle = model.get_submodule(head).register_forward_pre_hook(lambda module, given: captured.append(given[0]))
    try:
        with torch.no_grad():
            model(inputs)
    finally:
        handle.remove()
    return nn.functional.normalize(captured[0].float().flatten(1), dim=1)


def nearest(one: Tensor, others: Tensor, count: int) -> list[tuple[int, float]]:
    """The places of the `count` rows of `others` (N,D) with the highest cosine similarity to `one` (D,), and that."""
    best = (others @ one).topk(min(count, len(others)))
    return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
