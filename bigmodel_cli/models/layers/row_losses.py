"""Losses of many rows against one matrix, a few rows at a time, with their gradients in the same pass.

The logits of a batch of users over a catalogue are much larger than everything else: 6,000 items by 1,700 take 40 MB,
which softmax and its gradient write and read a dozen times. A chunk that stays in the cache takes a third of the time,
and no logits are kept for the backward pass. Shapes: N rows, D width, C columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

CACHED_LOGITS = 1 << 18  # 1 MB in fp32: about the second-level cache of a core


def can_chunk(x: Tensor) -> bool:
    """Whether :func:`row_losses` computes losses of `x`: on a CPU, outside of tracers and compilers."""
    return x.device.type == "cpu" and type(x) is Tensor and not torch.compiler.is_compiling()


def row_losses(part: Callable[..., Tensor], columns: int, by_row: Sequence[Tensor], shared: Sequence[Tensor]) -> Tensor:
    """``part(*by_row, *shared)``, the losses (N,) of rows whose logits have `columns` numbers each.

    `part` gets some rows of the tensors `by_row` (N, ...) and the whole of those `shared`. The loss of a row must
    depend on no other one, and on nothing random.
    """
    rows = max(1, CACHED_LOGITS // max(columns, 1))
    return _RowLosses.apply(part, rows, len(by_row), *by_row, *shared)  # type: ignore[no-any-return, no-untyped-call]


class _RowLosses(torch.autograd.Function):
    """The gradients of the sum of the losses, computed with them. Other weights of the rows compute them again."""

    @staticmethod
    def forward(ctx: Any, part: Callable[..., Tensor], rows: int, count: int, *tensors: Tensor) -> Tensor:
        wanted = ctx.needs_input_grad[3:]
        losses, gradients = _in_chunks(part, rows, count, tensors, wanted, None)
        ctx.part, ctx.rows, ctx.count, ctx.wanted = part, rows, count, wanted
        ctx.save_for_backward(*tensors, *(g for g in gradients if g is not None))
        return losses

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, weights: Tensor) -> tuple[Any, ...]:
        tensors, found = ctx.saved_tensors[: len(ctx.wanted)], iter(ctx.saved_tensors[len(ctx.wanted) :])
        gradients: Sequence[Tensor | None] = [next(found) if wanted else None for wanted in ctx.wanted]
        if len(weights) and bool((weights == weights[0]).all()):  # as where the losses are summed
            gradients = [None if g is None else g * weights[0] for g in gradients]
        else:
            _, gradients = _in_chunks(ctx.part, ctx.rows, ctx.count, tensors, ctx.wanted, weights)
        return None, None, None, *gradients


def _in_chunks(
    part: Callable[..., Tensor], rows: int, count: int, tensors: Sequence[Tensor], wanted: Sequence[bool],
    weights: Tensor | None,
) -> tuple[Tensor, list[Tensor | None]]:  # fmt: skip
    """The losses (N,), and the gradients of their sum weighted by `weights` (N,), for the tensors that are `wanted`."""
    by_row, of_row = tensors[:count], wanted[:count]
    shared = [t.detach().requires_grad_(w) for t, w in zip(tensors[count:], wanted[count:], strict=True)]
    gradients = [torch.zeros_like(t) if w else None for t, w in zip(by_row, of_row, strict=True)]
    losses = []
    for at in range(0, max(len(by_row[0]), 1), rows):
        chunk = [t[at : at + rows].detach().requires_grad_(w) for t, w in zip(by_row, of_row, strict=True)]
        with torch.set_grad_enabled(any(wanted)):
            found = part(*chunk, *shared)
        if any(wanted):
            found.backward(torch.ones_like(found) if weights is None else weights[at : at + rows])
        for gradient, piece in zip(gradients, chunk, strict=True):
            if gradient is not None and piece.grad is not None:
                gradient[at : at + rows] = piece.grad
        losses.append(found.detach())
    return torch.cat(losses), [*gradients, *(_gradient(t) if t.requires_grad else None for t in shared)]


def _gradient(shared: Tensor) -> Tensor:
    return torch.zeros_like(shared) if shared.grad is None else shared.grad
