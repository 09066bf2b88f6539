"""Keeps ``torch._dynamo`` from being imported before something is compiled.

Each optimizer of ``torch.optim`` imports it when it is built and when it steps, only to exclude itself from
compilation. That costs more than a second at the start of a run and 100 MB. Here no optimizer is compiled.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch

EXCLUDED_METHODS = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")


def postpone_dynamo() -> None:
    """Let the optimizers of ``torch.optim`` run without importing the compiler, with the same results.

    Versions of torch that do it differently are left unchanged, and import the compiler as before.
    """
    for name in EXCLUDED_METHODS:
        method = getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None)
        if method is not None and not hasattr(method, "__dynamo_disable"):
            method.__dynamo_disable = method  # where torch._compile keeps the uncompiled method
    for kind in vars(torch.optim).values():
        step: Any = getattr(kind, "step", None)
        if getattr(getattr(step, "__code__", None), "co_name", None) == "_use_grad":
            kind.step = _without_graph_break(step.__wrapped__)


@contextlib.contextmanager
def without_dynamo() -> Iterator[None]:
    """Run dispatch modes and torch's Python kernels in the block without importing the compiler.

    ``torch._disable_dynamo`` imports it when a wrapped function is first called. A stub takes its place
    in the block. The marks that it leaves are removed at the end, so that the real compiler sets them
    again if it is imported.

    Raises:
        ImportError, AttributeError: the block uses more of the compiler than ``disable``.
    """
    name = "torch._dynamo"
    if name in sys.modules:
        yield
        return
    disabled: list[Any] = []

    def disable(function: Any, *_: Any, **__: Any) -> Any:
        disabled.append(function)
        return function

    stub: Any = ModuleType(name)
    stub.disable = disable
    sys.modules[name] = torch._dynamo = stub
    try:
        yield
    finally:
        del sys.modules[name], torch._dynamo
        for function in disabled:
            vars(function).pop("__dynamo_disable", None)


def _without_graph_break(step: Callable[..., Any]) -> Callable[..., Any]:
    """`step` as ``torch.optim.optimizer._use_grad_for_differentiable`` wraps it, without its graph break."""

    @functools.wraps(step)
    def plain(self: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return step(self, *args, **kwargs)

    return plain
