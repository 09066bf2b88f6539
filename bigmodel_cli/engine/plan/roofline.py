"""The roofline model: an operator takes the longer of its arithmetic and its memory traffic (Williams et al. 2009).

    seconds = overhead + max(flops / (peak x efficiency), bytes / bandwidth)

For GPUs the efficiencies are stated here; for this machine's CPU they are measured (``ceilings.py``).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from bigmodel_cli.engine.plan.devices import Device
from bigmodel_cli.engine.plan.trace import Op, Trace


class Ceilings(Protocol):
    """The peak rates of a device, by operator."""

    @property
    def overhead(self) -> float:
        """Seconds that every operator takes at least."""
        ...

    def arithmetic(self, op: Op, shards: int) -> float:
        """FLOP/s of operators like `op` with matrices divided into `shards`."""
        ...

    def traffic(self, op: Op) -> float:
        """Bytes per second of operators like `op`."""
        ...


@dataclass(frozen=True)
class DataSheetCeilings:
    """Ceilings of a GPU from its data sheet, with the efficiencies of current kernels.

    Large products reach `sustained`; narrow ones less, since tiles stay empty and loads are not hidden.
    Attention counts all T^2 pairs, of which causal kernels compute half: FlashAttention-2 (Dao 2023)
    reaches 0.55 to 0.7 of A100's peak on that half. In a channels-last ResNet, cuDNN's best layers are as
    efficient as products, and those with few channels half as efficient.
    """

    device: Device
    overhead: float = 4e-6

    def arithmetic(self, op: Op, shards: int) -> float:
        device = self.device
        peak = device.bf16 if op.half and device.bf16 else device.fp32
        min_dim = min(op.min_dim, max((op.side if op.kind == "matmul" else op.min_dim) // shards, 1))
        if op.kind == "attention":
            # Twice, for the causal half. Heads of 64 and more use the units better.
            return peak * 2 * device.sustained * (0.6 if op.min_dim >= 64 else 0.4) * (0.8 if op.backward else 1.0)
        efficiency = interpolate(TILE_EFFICIENCY, min_dim)
        return peak * device.sustained * efficiency * (0.7 if op.kind == "conv" else 1.0)

    def traffic(self, op: Op) -> float:
        return self.device.bandwidth * 0.85


TILE_EFFICIENCY = ((16, 0.08), (64, 0.3), (128, 0.5), (256, 0.7), (512, 0.85), (1024, 0.95), (2048, 1.0))
"""Efficiency relative to large products, by the smallest dimension."""


def interpolate(curve: Sequence[Sequence[float]], x: float) -> float:
    """The value of `curve` (ascending (x, y) points) at `x`, linear in log x; flat beyond its ends."""
    if x <= curve[0][0]:
        return curve[0][1]
    for (x0, y0), (x1, y1) in itertools.pairwise(curve):
        if x <= x1:
            return y0 + (y1 - y0) * math.log(x / x0) / math.log(x1 / x0)
    return curve[-1][1]


def op_seconds(op: Op, ceilings: Ceilings, shards: int = 1) -> float:
    """Seconds of `op` on one of `shards` devices, each of which has an equal part of its tensors."""
    arithmetic = op.flops / shards / ceilings.arithmetic(op, shards) if op.flops else 0.0
    return ceilings.overhead + max(arithmetic, op.bytes / shards / ceilings.traffic(op))


def phase_seconds(trace: Trace, ceilings: Ceilings, shards: int = 1, compiled: bool = False) -> dict[str, float]:
    """Seconds of "forward", "backward" and "optimizer"."""
    found = {"forward": 0.0, "backward": 0.0, "optimizer": 0.0}
    ops = fuse_memory_ops(trace) if compiled else trace.ops
    for op in ops:
        found[op.phase] += op_seconds(op, ceilings, shards)
    return found


def fuse_memory_ops(trace: Trace) -> list[Op]:
    """The operators after torch.compile's fusion: consecutive ones bound by memory become one kernel.

    The kernel reads tensors from before it, and writes those that are still alive after it.
    """
    kernels: list[Op] = []
    group: list[Op] = []
    for index, op in enumerate(trace.ops):
        if op.kind == "memory" and (not group or group[-1].phase == op.phase):
            group.append(op)
            continue
        kernels += _merge(trace, group, index)
        group = [op] if op.kind == "memory" else []
        if op.kind != "memory":
            kernels.append(op)
    return kernels + _merge(trace, group, len(trace.ops))


def _merge(trace: Trace, group: list[Op], end: int) -> list[Op]:
    if len(group) < 2:
        return group
    created_keys: frozenset[int] = frozenset().union(*(op.created_keys for op in group))
    read_keys: frozenset[int] = frozenset().union(*(op.read_keys for op in group)) - created_keys
    freed = {k: trace.lifetimes[k].freed for k in created_keys}
    outlive = [k for k in created_keys if freed[k] is None or freed[k] > end]  # type: ignore[operator]
    first = group[0]
    read = sum(trace.lifetimes[k].size for k in read_keys)
    read = min(read, sum(op.read for op in group))
    written = sum(trace.lifetimes[k].size for k in outlive)
    in_place = sum(max(op.written - sum(trace.lifetimes[k].size for k in op.created_keys), 0) for op in group)
    return [
        Op("fused", first.phase, 0, read, written + in_place, 0, 0, first.half, first.block, read_keys, created_keys)
    ]
