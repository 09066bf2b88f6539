"""Gradients as the loop needs them: how a step gets them, their norm, and clipping, also of sparse ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.types import Batch
from bigmodel_cli.optim.combined import Combined
from bigmodel_cli.optim.rowwise import RowwiseAdagrad


class MeanGradient:
    """How a step gets its gradients: the mean over the units of the batch. Other ways are its subclasses."""

    def add(self, run: Any, micro: Batch, count: int) -> Tensor:
        """Add the gradient of a prepared micro-batch of a step of `count` units; returns the sum of its losses."""
        with run.timer("forward"), run.placement.autocast():
            loss: Tensor = run.task.loss(run.forward, micro).total
        with run.timer("backward"):
            # The scale gives the gradient of the mean over all units. It is a factor of the loss and not an
            # argument of backward(), for which torch imports its symbolic shapes: two seconds.
            (loss * (run.parallel.gradient_divisor / count)).backward()
        return loss.detach()

    def finish(self, run: Any) -> None:
        """Turn the sum over the micro-batches of a step into its gradient."""

    def spent(self, run: Any) -> dict[str, Any]:
        """What the steps so far cost, for the event of an epoch."""
        return {}

    def record(self, run: Any) -> dict[str, Any]:
        """What a checkpoint says of how its gradients were made, under its meta data."""
        return {}

    def resume(self, meta: Mapping[str, Any]) -> None:
        """Continue as the checkpoint with the meta data `meta` did.

        Raises:
            InputError: this run cannot.
        """


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
