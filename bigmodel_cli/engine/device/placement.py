"""Where and how a model runs: device, precision, memory format, threads.

The only module that asks torch for devices. Choosing is pure; ``process.py`` applies a placement to the process,
and ``autotune.py`` times the settings that are left open here.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from bigmodel_cli.core.errors import InputError, MachineError
from bigmodel_cli.core.processes.cpu_count import asked_threads, available_cores
from bigmodel_cli.core.processes.host_memory import memory_available, memory_peak
from bigmodel_cli.core.recipe import PlacementSection
from bigmodel_cli.core.types import Batch
from bigmodel_cli.engine.device.convolutions import own_convolutions
from bigmodel_cli.engine.device.hardware import cpu_info
from bigmodel_cli.engine.device.ranks import SINGLE_PROCESS, Ranks

CHOICES = ("precision", "channels_last", "compile", "threads", "small_maps")
"""The settings that autotuning may change, and that a run must keep to resume bit for bit."""

MAX_THREADS = 1024


@dataclass(frozen=True)
class Placement:
    """A device and the settings that the run uses on it, with the reason for each."""

    device: torch.device
    precision: str
    channels_last: bool
    compile: bool
    threads: int
    small_maps: bool
    """Whether convolutions that torch is slow at take other kernels: see ``convolutions.py``."""
    why: str
    deterministic: bool = False

    def model(self, model: nn.Module) -> nn.Module:
        """Move `model` to the device and the memory format, in place, with its convolutions as chosen."""
        own_convolutions(model, self.small_maps)
        volumes = any(x.dim() == 5 for x in (*model.parameters(), *model.buffers()))  # which torch would move too
        form = torch.channels_last if self.channels_last and not volumes else torch.contiguous_format
        return model.to(self.device, memory_format=form)  # type: ignore[call-overload, no-any-return]

    def compiled(self, model: nn.Module) -> nn.Module:
        """The module to call in training: `model`, or its compiled form, which shares every tensor with it."""
        if not self.compile:
            return model
        # It warns of a CUDA compiler without a card, which is nobody's concern on a CPU.
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        return torch.compile(model)  # type: ignore[return-value]

    def choices(self) -> dict[str, Any]:
        """The settings named in CHOICES as plain values, for checkpoints."""
        return {k: v for k, v in asdict(self).items() if k in CHOICES}

    def with_(self, **changes: Any) -> Placement:
        return replace(self, **changes)

    def set_threads(self) -> None:
        """Set torch's number of intra-operator threads."""
        torch.set_num_threads(self.threads)

    def synchronize(self) -> None:
        """Wait until the device has finished the work queued on it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.accelerator.synchronize(self.device)

    def batch(self, batch: Batch) -> Batch:
        """`batch` on the device; copies from pinned memory are asynchronous."""
        return {k: v.to(self.device, non_blocking=True) for k, v in batch.items()}

    def inputs(self, batch: Batch) -> Batch:
        """A prepared `batch` in the memory format: (B,C,H,W) tensors become channels-last where that was chosen."""
        if not self.channels_last:
            return batch
        return {k: v.contiguous(memory_format=torch.channels_last) if v.dim() == 4 else v for k, v in batch.items()}

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Autocast to bf16 where that precision was chosen; weights, sums and losses stay fp32."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        # Otherwise weights that were cast under inference_mode would be reused in training.
        return torch.autocast(self.device.type, torch.bfloat16, cache_enabled=torch.is_grad_enabled())

    @property
    def lag(self) -> int:
        """How many steps late losses are read, so that the host never waits for the device: 1 on CUDA."""
        return int(self.device.type == "cuda")

    @property
    def has_bf16(self) -> bool:
        """Whether bf16 products should be faster than fp32 ones on this processor.

        AVX-512's bf16 instruction alone is not enough on Intel: on an Emerald Rapids whose AMX
        was hidden, products ran at 177 GFLOP/s in bf16 and at 351 in fp32.
        """
        if self.device.type == "cuda":
            return torch.cuda.is_bf16_supported(including_emulation=False)
        name, flags = cpu_info()
        fast = {"amx_bf16", "bf16"} if "Intel" in name else {"amx_bf16", "bf16", "avx512_bf16"}
        return self.device.type == "cpu" and bool(fast & flags)

    def memory_free(self) -> int:
        """Free bytes of GPU memory; 0 where the device shares the host's memory."""
        return torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else 0

    def memory_per_process(self, ranks: Ranks) -> int:
        """Bytes available to one process of this host: free memory of its GPU, or an equal part of the host's."""
        return self.memory_free() or memory_available() // ranks.local_world

    def memory_peak(self) -> int:
        """Peak memory in bytes, of the device on CUDA and of the process elsewhere."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return memory_peak()

    def __str__(self) -> str:
        form = ", channels-last" if self.channels_last else ""
        compiled = ", compiled" if self.compile else ""
        threads = f"{self.threads} thread{'s' * (self.threads != 1)}"
        return f"{device_name(self.device)}, {self.precision}{form}{compiled}, {threads} ({self.why})"


def local_device_count() -> int:
    """How many processes this host can run: one per GPU, or one per core without any."""
    return torch.cuda.device_count() or available_cores()


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def process_group_backend(name: str = "auto") -> str:
    """The torch.distributed backend for the device called `name`: NCCL for CUDA tensors, gloo for CPU tensors."""
    cuda = torch.cuda.is_available() and name.partition(":")[0] in ("auto", "cuda")
    return "cpu:gloo,cuda:nccl" if cuda else "gloo"


def choose_device(name: str = "auto", local_rank: int = 0) -> torch.device:
    """The device called `name`; ``auto`` is CUDA, else MPS, else CPU. Each process of a host gets its own GPU.

    Raises:
        InputError: torch knows no such device.
        MachineError: this machine does not have it.
    """
    if name in ("auto", "cuda") and torch.cuda.is_available():  # torch.cuda.set_device takes no device without index
        name = f"cuda:{local_rank or torch.cuda.current_device()}"
    if name == "auto":
        return torch.device("mps" if _has_mps() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"unknown device {name!r}", "expected auto, cpu, cuda, cuda:N or mps") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        what = f"--device {name}: {torch.cuda.device_count()} CUDA devices found"
        raise MachineError(what, hint="bigmodel env-check, or --device cpu")
    if device.type == "mps" and not _has_mps():
        raise MachineError("--device mps: not available on this machine", hint="--device cpu")
    if device.type not in ("cuda", "cpu", "mps"):
        raise InputError(f"unknown device {name!r}", "expected auto, cpu, cuda, cuda:N or mps")
    return device


def _has_mps() -> bool:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator is not None and accelerator.type == "mps"


def choose_placement(
    section: PlacementSection, recorded: Mapping[str, Any] | None = None, ranks: Ranks = SINGLE_PROCESS
) -> Placement:
    """The placement that `section` asks for, with ``auto`` resolved. Changes nothing in the process.

    `recorded` is the environment saved by the run that is resumed: on the same device its settings
    take the place of the defaults, and what `section` names takes precedence over both.

    Raises:
        InputError: torch knows no such device.
        MachineError: this machine does not have the device.
    """
    device = choose_device(section.device, ranks.local_rank)
    chosen: dict[str, Any] = {
        "precision": "bf16" if device.type == "cuda" else "fp32",
        "channels_last": True,
        "compile": False,
        "threads": asked_threads() or max(available_cores() // ranks.local_world, 1),
        "small_maps": device.type == "cpu",
    }
    why = "as requested" if section.precision != "auto" else f"default on {device.type}"
    if recorded is not None and recorded.get("device") == device_name(device):
        # A checkpoint is untrusted input: values must have the types of ours, and threads stay in bounds.
        saved = {k: recorded[k] for k in CHOICES if type(recorded.get(k)) is type(chosen[k])}
        chosen |= saved if 0 < saved.get("threads", 1) <= MAX_THREADS else {}
        why = "as the run began"
    requested = {k: getattr(section, k, "auto") for k in CHOICES}
    chosen |= {k: v for k, v in requested.items() if v not in ("auto", None)}
    return Placement(device, **chosen, why=why, deterministic=section.deterministic)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch ran out of memory: an error class of its own on CUDA, a plain RuntimeError on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
