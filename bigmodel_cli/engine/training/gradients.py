"""Gradients as the loop needs them: their norm, and clipping, also where those of a table are sparse."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.optim.combined import Combined
from bigmodel_cli.optim.rowwise import RowwiseAdagrad


def gradient_values(optimizer: torch.optim.Optimizer, world: int) -> list[Tensor]:
    """The gradients of an optimizer's parameters; of a sparse one the values of its rows, each row once.

    They share the memory of the gradients.

    Raises:
        InputError: one is sparse, and the optimizer needs the whole table, or several processes would average it.
    """
    found = []
    for part in optimizer.parts if isinstance(optimizer, Combined) else [optimizer]:
        for p in (p for group in part.param_groups for p in group["params"] if p.grad is not None):
            if p.grad.is_sparse:
                _check_sparse(part, p, world)
                p.grad = p.grad.coalesce()
                found.append(p.grad.values())
            else:
                found.append(p.grad)
    return found


def _check_sparse(optimizer: torch.optim.Optimizer, table: nn.Parameter, world: int) -> None:
    if world > 1:
        raise InputError("sparse gradients in several processes", "expected one", "--set model.sparse=false")
    if not isinstance(optimizer, RowwiseAdagrad):
        what = f"model.sparse with {type(optimizer).__name__} for a table of {len(table):,} rows"
        hint = f"--optimizer rowwise-adagrad, and optimizer.rows of at most {len(table)}"
        raise InputError(what, "expected an optimizer of rows", hint)


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
