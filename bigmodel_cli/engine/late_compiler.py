"""torch's compiler, imported where something is compiled and not before.

``torch.optim`` imports ``torch._dynamo`` in every optimizer, only to tell it that some
methods are not to be compiled: over a second at the start of each run, and 100 MB.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

NAME = "torch._dynamo"


class _Late(ModuleType):
    """Stands for ``torch._dynamo``: answers what optimizers say to it, and is the real module for all else."""

    def disable(self, fn: Callable[..., Any], *_: Any, **__: Any) -> Callable[..., Any]:
        """`fn` itself: what nobody compiles needs no shield from it."""
        return fn

    def graph_break(self, *_: Any, **__: Any) -> None:
        """Nothing: there is no graph to break."""

    def __getattr__(self, name: str) -> Any:
        if name == "__spec__":  # what Python asks of a module that it finds loaded
            return None
        if name == "__file__":  # what ``inspect`` asks of every module, in the midst of other imports
            raise AttributeError(name)
        if sys.modules.get(NAME) is self:
            del sys.modules[NAME]
            importlib.import_module(NAME)
        return getattr(sys.modules[NAME], name)


def postpone_compiler() -> None:
    """Until something other than an optimizer asks for the compiler, do without it."""
    if NAME not in sys.modules:
        late = _Late(NAME)
        sys.modules[NAME] = late
        torch._dynamo = late
