"""The table of devices that a plan can be made for: their peaks, and the fraction that is reached in practice.

Peaks are the vendors' *dense* figures (data sheets often print twice as much, with 2:4 sparsity).
Rates are bytes or FLOPs per second, memory is in bytes; `link` and `network` count one direction.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from bigmodel_cli.core.errors import InputError, MachineError, nearest

T, G, GIB = 1e12, 1e9, 2**30
USABLE_FRACTION, USABLE_FRACTION_CPU = 0.92, 0.7
"""The fraction of memory for tensors. The CUDA context, the collectives' buffers and fragmentation take the rest; on a
CPU the data, the libraries and freed memory that is kept (``process.py``): a process took up to 1.45 times the size of
its tensors."""


@dataclass(frozen=True)
class Device:
    """One accelerator and the machine it usually sits in."""

    name: str
    bf16: float | None
    """FLOP/s of bf16 matrix products with fp32 sums; None where the device has no instructions for them."""
    fp32: float
    """FLOP/s of fp32 matrix products with torch's matmul precision "high": TF32 where the device has it."""
    memory: float
    bandwidth: float
    link: float
    """Bytes per second to the other devices of the node."""
    network: float
    """Bytes per second from one device to other nodes."""
    per_node: int
    sustained: float
    """The fraction of the peak that large matrix products sustain under the power limit."""

    @property
    def usable(self) -> float:
        return self.memory * (USABLE_FRACTION_CPU if self.name == "cpu" else USABLE_FRACTION)


NVLINK4, NVLINK3, PCIE4, PCIE3 = 450 * G, 300 * G, 32 * G, 16 * G

DEVICES = {
    d.name: d
    for d in (
        # NVIDIA DGX B200 data sheet (2024): an eighth of 36 PFLOP/s dense FP8, halved; 64 TB/s; 400 Gb/s a GPU.
        Device("B200", 2250 * T, 1125 * T, 180 * G, 8.0 * T, 900 * G, 50 * G, 8, 0.70),
        # NVIDIA H200 data sheet (2023); compute as H100.
        Device("H200", 989 * T, 494 * T, 141 * G, 4.8 * T, NVLINK4, 50 * G, 8, 0.70),
        # NVIDIA H100 data sheet (2022), SXM5; DGX H100: 8 x 400 Gb/s InfiniBand.
        Device("H100", 989 * T, 494 * T, 80 * GIB, 3.35 * T, NVLINK4, 50 * G, 8, 0.70),
        # NVIDIA A100 data sheet (2021), SXM4; DGX A100: 8 x 200 Gb/s.
        Device("A100-80GB", 312 * T, 156 * T, 80 * GIB, 2.039 * T, NVLINK3, 25 * G, 8, 0.82),
        Device("A100-40GB", 312 * T, 156 * T, 40 * GIB, 1.555 * T, NVLINK3, 25 * G, 8, 0.82),
        # NVIDIA V100 data sheet (2018), SXM2: tensor cores for fp16 only, so plans are in fp32. DGX-1: 4 x 100 Gb/s.
        Device("V100", None, 15.7 * T, 32 * GIB, 0.9 * T, 150 * G, 6.25 * G, 8, 0.90),
        # NVIDIA L40S, L4, A10 and T4 data sheets; PCIe only; clouds give 25 Gb/s a GPU.
        Device("L40S", 362 * T, 183 * T, 48 * GIB, 0.864 * T, PCIE4, 3.1 * G, 8, 0.75),
        Device("L4", 121 * T, 60 * T, 24 * GIB, 0.3 * T, PCIE4, 3.1 * G, 8, 0.60),
        Device("A10", 125 * T, 62.5 * T, 24 * GIB, 0.6 * T, PCIE4, 3.1 * G, 8, 0.60),
        Device("T4", None, 8.1 * T, 16 * GIB, 0.32 * T, PCIE3, 3.1 * G, 8, 0.70),
        # NVIDIA Ada (2022) and Ampere GA102 (2020) white papers: bf16 with fp32 sums; 10 Gb/s Ethernet.
        Device("RTX4090", 165 * T, 82.6 * T, 24 * GIB, 1.008 * T, PCIE4, 1.25 * G, 8, 0.85),
        Device("RTX3090", 71 * T, 35.6 * T, 24 * GIB, 0.936 * T, PCIE4, 1.25 * G, 8, 0.85),
    )
}
ALIASES = {"A100": "A100-80GB", "4090": "RTX4090", "3090": "RTX3090"}


@dataclass(frozen=True)
class Cluster:
    """`count` devices; ``device.name == "cpu"`` is this machine."""

    count: int
    device: Device

    @property
    def per_node(self) -> int:
        return min(self.count, self.device.per_node)

    @property
    def nodes(self) -> int:
        return -(-self.count // self.device.per_node)


def parse_cluster(text: str, network: float | None = None) -> Cluster:
    """Parse ``64xH100``, ``H100`` or ``cpu``; `network` in GB/s per device overrides the table.

    Raises:
        InputError: the text is malformed, or the device is unknown.
    """
    found = re.fullmatch(r"(?:(\d{1,6})\s*[x*]\s*)?([A-Za-z0-9-]+)", text.strip())
    if found is None or found[1] == "0":
        raise InputError(f"--gpus {text}", "expected a count and a device, such as 8xA100 or 64xH100, or cpu")
    count, name = int(found[1] or 1), found[2]
    if name.lower() == "cpu":
        if count != 1:
            raise InputError(f"--gpus {text}", "expected cpu without a count: it is this machine")
        return Cluster(1, this_machine())
    known = {d.lower(): d for d in DEVICES} | {a.lower(): d for a, d in ALIASES.items()}
    if name.lower() not in known:
        raise InputError(f"--gpus {text}: unknown device {name}", nearest(name, [*DEVICES, *ALIASES, "cpu"]))
    device = DEVICES[known[name.lower()]]
    return Cluster(count, device if network is None else replace(device, network=network * G))


def this_machine() -> Device:
    """This machine's CPU; its rates are measured, see ``ceilings.py``."""
    from bigmodel_cli.engine.device.hardware import memory_bytes

    try:
        total = memory_bytes()[1]
    except OSError:
        raise MachineError("--gpus cpu: this system does not report its memory", hint="--gpus 1xH100") from None
    return Device("cpu", None, 0.0, total, 0.0, 0.0, 0.0, 1, 1.0)
