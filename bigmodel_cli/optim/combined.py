"""Several optimizers, each with its own parameters, behind the interface of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class Combined(torch.optim.Optimizer):
    """Step each of `parts`. ``param_groups`` concatenates theirs, so that a schedule reaches all of them."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        self.parts = parts
        self.param_groups = [group for part in parts for group in part.param_groups]
        self.defaults: dict[str, Any] = {}

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Step every part; if given, `closure` is called once to compute the gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {str(i): part.state_dict() for i, part in enumerate(self.parts)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for i, part in enumerate(self.parts):
            part.load_state_dict(state_dict[str(i)])
        self.param_groups = [group for part in self.parts for group in part.param_groups]
