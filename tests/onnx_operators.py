"""torch's exporter reads the source of onnxscript's 500 functions again for each model: here once a process."""

from __future__ import annotations

import copy
import functools
from typing import Any


@functools.cache
def read_once() -> None:
    """Keep what was read; each export has a registry of its own, as it may register more in it."""
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        whole = functools.cache(ONNXRegistry.from_torchlib)
    except (ImportError, AttributeError):  # another torch has it elsewhere, and reads again
        return

    def from_torchlib(*options: Any, **more: Any) -> ONNXRegistry:
        registry = copy.copy(whole(*options, **more))
        registry.functions = {name: [*found] for name, found in registry.functions.items()}
        return registry

    ONNXRegistry.from_torchlib = staticmethod(from_torchlib)  # type: ignore[assignment, method-assign]
