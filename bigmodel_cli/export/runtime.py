"""What the formats share: packages that may be missing, threads, and how each is run by its runtime alone."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bigmodel_cli.core.cpu_count import available_cores
from bigmodel_cli.core.errors import MachineError
from bigmodel_cli.export.folder import Run, first_line


@dataclass(frozen=True)
class Runtime:
    """The part of ``example.py`` that is the format's own.

    Args:
        needs: the packages it imports beside numpy and Pillow.
        imports: the lines that import them.
        run: lines that make ``logits`` (1,K) of ``x``, the input array, with ``here`` the folder.
        answers: whether it answers, which weights alone cannot.
    """

    needs: tuple[str, ...]
    imports: str
    run: str
    answers: bool = True


def needed(extra: str, *packages: str) -> list[Any]:
    """The modules called `packages`, which the extra of that name installs.

    Raises:
        MachineError: one of them is not installed, or does not import.
    """
    found = []
    for package in packages:
        try:
            found.append(importlib.import_module(package))
        except ImportError as error:
            what = f"--format {extra} needs {package}: {first_line(error)}"
            raise MachineError(what, hint=f"pip install 'bigmodel[{extra}]'") from None
        except Exception as error:  # made for another torch, it raises what it likes
            what = f"--format {extra}: {package} does not work here: {first_line(error)}"
            raise MachineError(what, hint="another --format, or the torch that it was made for") from None
    return found


def threads() -> int:
    """CPU threads for a runtime: as many as torch takes, so that figures compare, without importing torch."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return int(torch.get_num_threads())
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdigit() and int(asked) else available_cores()


def by_torch(model: Callable[..., Any]) -> Run:
    """`model` as a function of arrays."""
    import torch

    def run(*inputs: Any) -> Any:
        with torch.inference_mode():
            return model(*(torch.from_numpy(x) for x in inputs)).float().numpy()

    return run


def saves_shards(run: Run, most: int) -> Run:
    """`run` for any batch size, of which it takes at most `most` samples a call."""

    def whole(*inputs: Any) -> Any:
        import numpy

        size = len(inputs[0])
        parts = [run(*(x[i : i + most] for x in inputs)) for i in range(0, size, most)]
        return parts[0] if len(parts) == 1 else numpy.concatenate(parts)

    return whole
