"""A model's layers and shapes, without a byte of its tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class without_noise(TorchFunctionMode):
    """Modules made in here are not drawn at random: for weights that are loaded next. A ResNet-18 is made in half."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return args[0] if func in (torch.Tensor.normal_, torch.Tensor.uniform_) else func(*args, **kwargs or {})


@contextlib.contextmanager
def without_values() -> Iterator[None]:
    """Modules made in here are on the meta device.

    Not ``torch.device("meta")`` alone: there normal noise for nobody is drawn by a Python
    function, whose imports (sympy is one) take a second.
    """
    with torch.device("meta"), without_noise():
        yield
