"""Gradients as the loop needs them: their norm, and clipping, also where those of a table are sparse."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from bigmodel_cli.core.errors import InputError


def gradient_values(parameters: Iterable[nn.Parameter], world: int) -> list[Tensor]:
    """The gradients of `parameters`; of a sparse one the values of its rows, each row once, which share its memory.

    Raises:
        InputError: one is sparse, and there are several processes, which would average it as a whole table.
    """
    found = []
    for p in parameters:
        if p.grad is None:
            continue
        if not p.grad.is_sparse:
            found.append(p.grad)
            continue
        if world > 1:
            raise InputError("sparse gradients in several processes", "expected one", "--set model.sparse=false")
        p.grad = p.grad.coalesce()
        found.append(p.grad.values())
    return found


def clip_gradients(parameters: Iterable[nn.Parameter], most: float, norm: Tensor) -> None:
    """Scale gradients in place so that their total `norm` is at most `most`."""
    given = [p for p in parameters if p.grad is not None]
    torch.nn.utils.clip_grads_with_norm_([p for p in given if not _is_sparse(p)], most, norm)
    scale = torch.clamp(most / (norm + 1e-6), max=1.0)  # as torch does for the others
    for p in filter(_is_sparse, given):
        assert p.grad is not None
        p.grad.values().mul_(scale.to(p.device))


def _is_sparse(p: nn.Parameter) -> bool:
    return p.grad is not None and p.grad.is_sparse
