"""Where and how a model runs: device, precision, memory format, threads.

The only place that asks which device there is.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from bigmodel_cli.core.errors import InputError, MachineError
from bigmodel_cli.core.recipe import PlacementSection
from bigmodel_cli.core.types import Batch


@dataclass(frozen=True)
class Placement:
    """A device and the settings that the run uses on it, with the reason for each."""

    device: torch.device
    precision: str
    channels_last: bool
    compile: bool
    threads: int
    why: str

    def model(self, model: nn.Module) -> nn.Module:
        """`model` on the device, in the memory format."""
        model = model.to(self.device)
        return model.to(memory_format=torch.channels_last) if self.channels_last else model  # type: ignore[call-overload, no-any-return]

    def batch(self, batch: Batch) -> Batch:
        """`batch` on the device; copies from pinned memory do not wait."""
        return {k: v.to(self.device, non_blocking=True) for k, v in batch.items()}

    def inputs(self, batch: Batch) -> Batch:
        """Model-ready `batch` in the memory format: (B,C,H,W) tensors become channels-last."""
        if not self.channels_last:
            return batch
        return {k: v.contiguous(memory_format=torch.channels_last) if v.dim() == 4 else v for k, v in batch.items()}

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """bf16 where that precision was chosen; weights, sums and losses stay fp32."""
        if self.precision == "fp32":
            yield
        else:
            # The cache of cast weights would be filled under inference_mode and reused in training.
            with torch.autocast(self.device.type, torch.bfloat16, cache_enabled=torch.is_grad_enabled()):
                yield

    def memory_peak(self) -> int:
        """Peak memory in bytes: of the device on CUDA, of the process elsewhere."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def __str__(self) -> str:
        form = ", channels-last" if self.channels_last else ""
        compiled = ", compiled" if self.compile else ""
        return f"{device_name(self.device)}, {self.precision}{form}{compiled}, {self.threads} threads ({self.why})"


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def choose_device(name: str = "auto") -> torch.device:
    """The device called `name`; ``auto`` is CUDA, else MPS, else CPU.

    Raises:
        MachineError: that device is not here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"unknown device {name!r}", "expected auto, cpu, cuda, cuda:N or mps") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        what = f"--device {name}: {torch.cuda.device_count()} CUDA devices found"
        raise MachineError(what, hint="bigmodel env-check, or --device cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise MachineError("--device mps: not available here", hint="--device cpu")
    if device.type not in ("cuda", "cpu", "mps"):
        raise InputError(f"unknown device {name!r}", "expected auto, cpu, cuda, cuda:N or mps")
    return device


def place(section: PlacementSection) -> Placement:
    """The placement that `section` asks for, ``auto`` resolved, and torch set up for it."""
    device = choose_device(section.device)
    cuda = device.type == "cuda"
    threads = section.threads or int(os.environ.get("OMP_NUM_THREADS", 0)) or _cores()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(section.deterministic)
    if cuda:
        torch.set_float32_matmul_precision("highest" if section.deterministic else "high")  # TF32
        torch.backends.cudnn.benchmark = not section.deterministic
    precision = section.precision if section.precision != "auto" else ("bf16" if cuda else "fp32")
    channels_last = section.channels_last if section.channels_last != "auto" else True
    compiled = section.compile if section.compile != "auto" else False
    why = "as asked" if section.precision != "auto" else f"default on {device.type}"
    return Placement(device, precision, channels_last, compiled, threads, why)


def _cores() -> int:
    """The cores that this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
