"""Build models without allocating their weights: on the meta device, or with parameters to be filled in later."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from bigmodel_cli.core.errors import InputError

RANDOM = frozenset({
    torch.Tensor.normal_, torch.Tensor.uniform_, nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_,
})  # fmt: skip
"""What fills a tensor with noise, as a mode sees it. Three of ``nn.init`` ask the mode themselves, and what they call
does so no more; of all others the mode sees the methods."""


class skip_random_init(TorchFunctionMode):
    """Initialise with zeros inside, for weights that are loaded next. A ResNet-18 builds in half the time.

    Not with whatever is in memory: ``trunc_normal_`` draws again until all values lie between its bounds.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func not in RANDOM:
            return func(*args, **given)
        tensor = args[0] if args else given["tensor"]  # nn.init passes all by name
        tensor.detach().zero_()
        return tensor


@contextlib.contextmanager
def init_on_meta() -> Iterator[None]:
    """Build modules on the meta device.

    ``torch.device("meta")`` alone would run ``normal_`` as a Python decomposition, whose imports (sympy and the
    compiler among them) take seconds.
    """
    with torch.device("meta"), skip_random_init():
        yield


@contextlib.contextmanager
def at_most_parameters(most: int, source: str) -> Iterator[None]:
    """Refuse to build modules with more than `most` parameters, for a `source` that a stranger made.

    On the meta device a layer takes no memory for its weights, but a billion layers still take time without end.

    Raises:
        InputError: there are more.
    """
    count, thread = 0, threading.get_ident()

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal count
        count += threading.get_ident() == thread  # the hook is of the whole process
        if count > most:
            raise InputError(f"{source}: more layers than it has tensors", "expected the model that it holds")

    hook = register_module_parameter_registration_hook(register)
    try:
        yield
    finally:
        hook.remove()


@contextlib.contextmanager
def parameters_on_meta(on: bool = True) -> Iterator[None]:
    """Build modules with parameters on the meta device, but real buffers, since buffers hold computed values.

    Each parameter is initialised as usual and dropped once it is registered, so at most one is in memory.
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
