"""Optimizers for large embedding tables, whose state is one number a row and whose steps touch the rows of a batch.

Shapes: R rows, D width, N rows with a gradient.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import optimizers
from bigmodel_cli.optim.combined import Combined
from bigmodel_cli.optim.optimizers import LearningRate, NamedParameters, WeightDecay, adamw
from bigmodel_cli.optim.per_parameter import PerParameter


class RowwiseAdagrad(PerParameter):
    """w_r <- w_r - lr g_r / (sqrt(s_r) + eps), with s_r the sum over steps of the mean square of row r's gradient.

    Adagrad with one number a row in place of one a weight (Mudigere et al. 2022). The gradient of a table (R,D) may be
    sparse: rows without one are not touched.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, eps: float = 1e-8) -> None:
        super().__init__(params, {"lr": lr, "eps": eps})

    def update(self, p: nn.Parameter, grad: Tensor, group: dict[str, Any]) -> None:
        lr, eps = group["lr"], group["eps"]
        state = self.state[p]
        if not state:
            state["sum"] = p.new_zeros(len(p))
        total: Tensor = state["sum"]
        if not grad.is_sparse:
            total += grad.square().mean(1)
            p.addcdiv_(grad, (total.sqrt() + eps)[:, None], value=-lr)
            return
        grad = grad.coalesce()
        rows, values = grad.indices()[0], grad.values()  # (N,), (N,D)
        total.index_add_(0, rows, values.square().mean(1))
        p.index_add_(0, rows, values / (total[rows].sqrt() + eps)[:, None], alpha=-lr)


@optimizers.register("rowwise-adagrad")
def rowwise_adagrad(
    named: NamedParameters,
    *,
    lr: LearningRate = 3e-2,
    adamw_lr: LearningRate = 1e-3,
    weight_decay: WeightDecay = 0.01,
    rows: Annotated[int, Field(gt=0, description="of the smallest further table that it trains")] = 10_000,
) -> torch.optim.Optimizer:
    """Row-wise Adagrad for the longest table and other long ones, with one number of state a row; AdamW for the rest.

    Raises:
        InputError: there is no matrix, so `lr` would have no effect.
    """
    matrices = [p for _, p in named if p.dim() == 2]
    if not matrices:
        raise InputError("rowwise-adagrad: no table to train", hint="--optimizer adamw")
    longest = max(len(p) for p in matrices)
    tables = [p for p in matrices if len(p) >= min(rows, longest)]
    chosen = {id(p) for p in tables}
    rest = [(n, p) for n, p in named if id(p) not in chosen]
    own = RowwiseAdagrad(tables, lr=lr)
    return Combined([own, adamw(rest, lr=adamw_lr, weight_decay=weight_decay)]) if rest else own
