"""torch's compiler, imported where something is compiled and not before.

Each optimizer of ``torch.optim`` imports ``torch._dynamo`` as it is made and at its steps, only to tell it what
not to compile: over a second at the start of a run, and 100 MB. Here nobody compiles an optimizer.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch

SHIELDED = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")


def postpone_dynamo() -> None:
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


@contextlib.contextmanager
def without_dynamo() -> Iterator[None]:
    """Let dispatch modes and torch's Python kernels, inside, run without the compiler that they are to be kept from.

    ``torch._disable_dynamo`` imports it when what it wraps is first called. A stand-in takes its place
    meanwhile, and what it was told is forgotten at the end: the compiler is told again, should it come.

    Raises:
        ImportError, AttributeError: something inside wants more of the compiler than to be left alone.
    """
    name = "torch._dynamo"
    if name in sys.modules:
        yield
        return
    told: list[Any] = []

    def disable(function: Any, *_: Any, **__: Any) -> Any:
        told.append(function)
        return function

    stand_in: Any = ModuleType(name)
    stand_in.disable = disable
    sys.modules[name] = torch._dynamo = stand_in
    try:
        yield
    finally:
        del sys.modules[name], torch._dynamo
        for function in told:
            vars(function).pop("__dynamo_disable", None)


def _with_grad_as_asked(step: Callable[..., Any]) -> Callable[..., Any]:
    """What ``torch.optim.optimizer._use_grad_for_differentiable`` makes of `step`, without breaks of a graph."""

    @functools.wraps(step)
    def plain(self: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return step(self, *args, **kwargs)

    return plain
