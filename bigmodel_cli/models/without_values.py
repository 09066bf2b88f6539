"""A model's layers and shapes, without a byte of its tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _NoNoise(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return args[0] if func is torch.Tensor.normal_ else func(*args, **kwargs or {})


@contextlib.contextmanager
def without_values() -> Iterator[None]:
    """Modules made in here are on the meta device.

    Not ``torch.device("meta")`` alone: there normal noise for nobody is drawn by a Python
    function, whose imports (sympy is one) take a second.
    """
    with torch.device("meta"), _NoNoise():
        yield
