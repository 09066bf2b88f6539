"""Models without the memory of their weights: on the meta device, or with parameters that come later."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


class skip_random_init(TorchFunctionMode):
    """Modules made in here are not drawn at random: for weights that are loaded next. A ResNet-18 is made in half."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return args[0] if func in (torch.Tensor.normal_, torch.Tensor.uniform_) else func(*args, **kwargs or {})


@contextlib.contextmanager
def init_on_meta() -> Iterator[None]:
    """Modules made in here are on the meta device.

    Not ``torch.device("meta")`` alone: there normal noise for nobody is drawn by a Python
    function, whose imports (sympy is one) take a second.
    """
    with torch.device("meta"), skip_random_init():
        yield


@contextlib.contextmanager
def parameters_on_meta(on: bool = True) -> Iterator[None]:
    """Models that are built inside have parameters on the meta device, and real buffers, which hold what is computed.

    A parameter is drawn as usual and forgotten once its module has it: at most one is in memory.
    """
    if not on:
        yield
        return
    real = nn.Module.register_parameter

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        real(module, name, parameter)

    nn.Module.register_parameter = register  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = real  # type: ignore[method-assign]


def has_meta_parameters(model: nn.Module) -> bool:
    return any(p.is_meta for p in model.parameters())
