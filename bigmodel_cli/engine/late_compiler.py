"""torch's compiler, imported where something is compiled and not before.

Each optimizer of ``torch.optim`` imports ``torch._dynamo`` as it is made and at its steps, only to tell it what
not to compile: over a second at the start of a run, and 100 MB. Here nobody compiles an optimizer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

SHIELDED = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")


def postpone_compiler() -> None:
    """Let the optimizers of ``torch.optim`` run without the compiler, with the same results.

    In a torch that does it in another way nothing is changed, and the compiler is imported as before.
    """
    for name in SHIELDED:
        method = getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None)
        if method is not None and not hasattr(method, "__dynamo_disable"):
            method.__dynamo_disable = method  # where torch._compile keeps the method that the compiler leaves alone
    for kind in vars(torch.optim).values():
        step: Any = getattr(kind, "step", None)
        if getattr(getattr(step, "__code__", None), "co_name", None) == "_use_grad":
            kind.step = _with_grad_as_asked(step.__wrapped__)


def _with_grad_as_asked(step: Callable[..., Any]) -> Callable[..., Any]:
    """What ``torch.optim.optimizer._use_grad_for_differentiable`` makes of `step`, without breaks of a graph."""

    @functools.wraps(step)
    def plain(self: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return step(self, *args, **kwargs)

    return plain
