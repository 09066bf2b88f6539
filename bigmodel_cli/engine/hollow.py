"""Models without their weights: what a process builds that will hold a part of them, and never the whole."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def hollow(on: bool = True) -> Iterator[None]:
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


def is_hollow(model: nn.Module) -> bool:
    return any(p.is_meta for p in model.parameters())
