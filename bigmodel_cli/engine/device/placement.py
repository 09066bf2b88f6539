"""Where and how a model runs: device, precision, memory format, threads.

The only place that asks which device there is. ``engine/device/autotune.py`` tries what is left open here.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bigmodel_cli.core.errors import InputError, MachineError
from bigmodel_cli.core.recipe import PlacementSection
from bigmodel_cli.core.types import Batch
from bigmodel_cli.engine.device.hardware import cpu_flags
from bigmodel_cli.engine.device.ranks import ONE, Ranks
from bigmodel_cli.engine.device.small_map_conv import dense_small_maps

CHOICES = ("precision", "channels_last", "compile", "threads", "small_maps")
"""What may be measured, and what a run must keep to be resumed bit by bit."""

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
    why: str

    def model(self, model: nn.Module) -> nn.Module:
        """`model` on the device, in the memory format, its small convolutions as chosen: changed in place."""
        dense_small_maps(model, self.small_maps)
        form = torch.channels_last if self.channels_last else torch.contiguous_format
        return model.to(self.device, memory_format=form)  # type: ignore[call-overload, no-any-return]

    def compiled(self, model: nn.Module) -> nn.Module:
        """What training calls: `model`, compiled where that was chosen. They share every tensor."""
        return torch.compile(model) if self.compile else model  # type: ignore[return-value]

    def choices(self) -> dict[str, Any]:
        """The open settings as plain values, for checkpoints and the cache of measurements."""
        return {k: v for k, v in asdict(self).items() if k in CHOICES}

    def with_(self, **changes: Any) -> Placement:
        return replace(self, **changes)

    def use(self) -> None:
        """Tell torch the number of threads."""
        torch.set_num_threads(self.threads)

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def batch(self, batch: Batch) -> Batch:
        """`batch` on the device; copies from pinned memory do not wait."""
        return {k: v.to(self.device, non_blocking=True) for k, v in batch.items()}

    def inputs(self, batch: Batch) -> Batch:
        """Model-ready `batch` in the memory format: (B,C,H,W) tensors become channels-last."""
        if not self.channels_last:
            return batch
        return {k: v.contiguous(memory_format=torch.channels_last) if v.dim() == 4 else v for k, v in batch.items()}

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """bf16 where that precision was chosen; weights, sums and losses stay fp32."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        # The cache of cast weights would be filled under inference_mode and reused in training.
        return torch.autocast(self.device.type, torch.bfloat16, cache_enabled=torch.is_grad_enabled())

    @property
    def lag(self) -> int:
        """Steps whose results are read later, so that the host never waits for the device: 1 on CUDA."""
        return int(self.device.type == "cuda")

    @property
    def has_bf16(self) -> bool:
        """Whether bf16 products are quicker than fp32 ones here, as far as the processor's kind tells.

        AVX-512's bf16 instruction alone is not enough on Intel's: on an Emerald Rapids whose AMX
        was hidden, products ran at 177 GFLOP/s in bf16 and at 351 in fp32.
        """
        if self.device.type == "cuda":
            return torch.cuda.is_bf16_supported(including_emulation=False)
        name, flags = cpu_flags()
        quick = {"amx_bf16", "bf16"} if "Intel" in name else {"amx_bf16", "bf16", "avx512_bf16"}
        return self.device.type == "cpu" and bool(quick & flags)

    def memory_free(self) -> int:
        """Free bytes of a GPU's own memory; 0 where the device shares the host's."""
        return torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else 0

    def memory_here(self, ranks: Ranks) -> int:
        """Bytes that one process of this host may take: of its own GPU, or its share of the host's memory."""
        return self.memory_free() or memory_available() // ranks.local_world

    def memory_peak(self) -> int:
        """Peak memory in bytes: of the device on CUDA, of the process elsewhere."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def __str__(self) -> str:
        form = ", channels-last" if self.channels_last else ""
        compiled = ", compiled" if self.compile else ""
        threads = f"{self.threads} thread{'s' * (self.threads != 1)}"
        return f"{device_name(self.device)}, {self.precision}{form}{compiled}, {threads} ({self.why})"


def memory_available() -> int:
    """Bytes of the host's memory that are free or can be made free."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def devices_here() -> int:
    """How many processes this host has a device for: one a GPU, else one a core."""
    return torch.cuda.device_count() or _cores()


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def backend(name: str = "auto") -> str:
    """How processes on the device called `name` talk: over NCCL between GPUs, over gloo between hosts' memories."""
    cuda = torch.cuda.is_available() and name.partition(":")[0] in ("auto", "cuda")
    return "cpu:gloo,cuda:nccl" if cuda else "gloo"


def choose_device(name: str = "auto", local_rank: int = 0) -> torch.device:
    """The device called `name`; ``auto`` is CUDA, else MPS, else CPU. Each process of a host has its own GPU.

    Raises:
        MachineError: that device is not here.
    """
    if local_rank and name in ("auto", "cuda") and torch.cuda.is_available():
        name = f"cuda:{local_rank}"
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


def place(section: PlacementSection, recorded: Mapping[str, Any] | None = None, ranks: Ranks = ONE) -> Placement:
    """The placement that `section` asks for, ``auto`` resolved, and torch set up for it.

    `recorded` is the environment of a run that goes on: what was left to us then stays as it was.
    """
    device = choose_device(section.device, ranks.local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    cuda = device.type == "cuda"
    gc.freeze()  # what was imported stays: it need not be looked through again
    gc.set_threshold(2_000)  # Python's own: cli.py has raised it for the start
    _keep_memory()
    if section.deterministic != torch.are_deterministic_algorithms_enabled():  # the call imports the compiler: 1.3 s
        torch.use_deterministic_algorithms(section.deterministic)
    if cuda:
        torch.set_float32_matmul_precision("highest" if section.deterministic else "high")  # TF32
        torch.backends.cudnn.benchmark = not section.deterministic
    chosen = {
        "precision": "bf16" if cuda else "fp32",
        "channels_last": True,
        "compile": False,
        "threads": int(os.environ.get("OMP_NUM_THREADS", 0)) or max(_cores() // ranks.local_world, 1),
        "small_maps": device.type == "cpu",
    }
    why = "as asked" if section.precision != "auto" else f"default on {device.type}"
    if recorded is not None and recorded.get("device") == device_name(device):
        # A stranger's word again: of the same type as ours, and no million threads.
        kept = {k: recorded[k] for k in CHOICES if type(recorded.get(k)) is type(chosen[k])}
        chosen |= kept if 0 < kept.get("threads", 1) <= MAX_THREADS else {}
        why = "as the run began"
    asked = {k: getattr(section, k, "auto") for k in CHOICES}
    placement = Placement(device, **chosen | {k: v for k, v in asked.items() if v not in ("auto", None)}, why=why)
    placement.use()
    return placement


@functools.cache
def _keep_memory() -> None:
    """Have glibc reuse freed blocks instead of giving each back: a CPU step frees and takes all its activations.

    Measured on 2 cores, ResNet-18 on 28x28 images: 5,000 page faults a step without, none with.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library has no mallopt
            mallopt = ctypes.CDLL(None).mallopt
            trim_threshold, most_mmaps = -1, -4  # malloc.h
            mallopt(most_mmaps, 0)
            mallopt(trim_threshold, 2**31 - 1)


def _cores() -> int:
    """The cores that this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch ran out of memory: a kind of its own on CUDA, a plain RuntimeError from the CPU's allocator."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
