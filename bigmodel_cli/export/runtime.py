"""What the formats share: optional packages, threads, and the runtime's part of ``example.py``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bigmodel_cli.core.errors import MachineError
from bigmodel_cli.core.extras import install_line
from bigmodel_cli.core.processes.cpu_count import asked_threads, available_cores
from bigmodel_cli.export.folder import Run, first_line


@dataclass(frozen=True)
class Runtime:
    """The format's own part of ``example.py``.

    Args:
        needs: the packages it imports besides numpy and Pillow, each with its oldest version that works.
        imports: the lines that import them.
        run: lines that compute ``logits`` (1,K) from the input array ``x``; ``here`` is the folder.
        answers: whether it can run the model, which a format with only weights cannot.
    """

    needs: tuple[str, ...]
    imports: str
    run: str
    answers: bool = True

    @property
    def packages(self) -> list[str]:
        """The names in `needs`, without versions."""
        return [need.partition(">")[0] for need in self.needs]


def import_packages(extra: str, *packages: str) -> list[Any]:
    """Import the modules `packages`, which the extra `extra` installs.

    Raises:
        MachineError: one of them is not installed, or does not import.
    """
    found = []
    for package in packages:
        try:
            found.append(importlib.import_module(package))
        except ImportError as error:
            what = f"--format {extra} needs {package}: {first_line(error)}"
            raise MachineError(what, hint=install_line(extra)) from None
        except Exception as error:  # built for another torch, it can raise anything
            what = f"--format {extra}: {package} does not work here: {first_line(error)}"
            raise MachineError(what, hint="another --format, or the torch version it was built for") from None
    return found


def threads() -> int:
    """CPU threads for a runtime: as many as torch, so that timings are comparable; does not import torch."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return int(torch.get_num_threads())
    return asked_threads() or available_cores()


def run_with_torch(model: Callable[..., Any]) -> Run:
    """`model` as a function of NumPy arrays."""
    import torch

    def run(*inputs: Any) -> Any:
        with torch.inference_mode():
            return model(*(torch.from_numpy(x) for x in inputs)).float().numpy()

    return run


def split_batches(run: Run, most: int) -> Run:
    """Extend `run`, which takes at most `most` samples per call, to any batch size."""

    def run_in_parts(*inputs: Any) -> Any:
        import numpy

        size = len(inputs[0])
        parts = [run(*(x[i : i + most] for x in inputs)) for i in range(0, size, most)]
        return parts[0] if len(parts) == 1 else numpy.concatenate(parts)

    return run_in_parts
