"""The step of optimizers that update one parameter after the other, or those of a group together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class PerParameter(torch.optim.Optimizer):
    """An optimizer whose step is `update` for each parameter that has a gradient."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            given = [(p, p.grad) for p in group["params"] if p.grad is not None]
            if given:
                self.update_all(given, group)
        return loss

    def update_all(self, given: list[tuple[nn.Parameter, Tensor]], group: dict[str, Any]) -> None:
        """Change the parameters in place by their gradients; `group` has the options."""
        for p, grad in given:
            self.update(p, grad, group)

    def update(self, p: nn.Parameter, grad: Tensor, group: dict[str, Any]) -> None:
        """Change `p` in place by its gradient; `group` has the options."""
