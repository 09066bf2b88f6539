"""The parallel layouts of a training step, and what each costs: memory, communication, time.

- ``single``: one process.
- ``ddp``: every device has the full model; gradients are all-reduced during the backward pass
  (Li et al. 2020), in buckets that are views of the gradients.
- ``fsdp``: weights, gradients and optimizer state are sharded over the devices. A block's bf16 weights are
  gathered before it runs, forward and backward, while the previous block computes; its gradients are
  reduce-scattered in fp32 (Zhao et al. 2023; ZeRO-3, Rajbhandari et al. 2020).
- ``tpN``: each block's matrices are also sharded over N devices of a node, with sequence parallelism in between
  (Shoeybi et al. 2019; Korthikanti et al. 2022). The traffic is that of two all-reduces per block forward and two
  backward, none of it overlapped. Over the remaining devices it is ``fsdp``.
- ``ppS``: the blocks are divided into S pipeline stages, see ``pipeline.py``.

Communication that overlaps with computation costs only what exceeds it, and the first and last transfers,
which cannot overlap.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from bigmodel_cli.engine.plan.devices import Cluster
from bigmodel_cli.engine.plan.network import Ring
from bigmodel_cli.engine.plan.trace import Memory

BUCKET_BYTES = 25 * 2**20
"""The size of DDP's buckets (torch's default)."""
HOST_SECONDS = 1e-4
"""Host time in seconds of each gather and scatter of FSDP, whose Python hooks copy a block's tensors in and out and
launch about a dozen kernels: assumed. Negligible for large blocks, and most of the step of a tiny model."""
BYTES_BF16, BYTES_FP32 = 2, 4


@dataclass(frozen=True)
class Work:
    """The memory and times of one micro-batch on one device, before sharding.

    `live` is the peak of bytes that are neither weights, gradients nor optimizer state; times in seconds.
    """

    memory: Memory
    live: float
    forward: float
    backward: float
    optimizer: float


@dataclass(frozen=True)
class Model:
    """The sizes of a model that estimates depend on; in elements unless stated otherwise."""

    parameters: int
    trained: int
    blocks: list[int]
    """Parameters of each repeated block."""
    state: int
    """Bytes of optimizer state."""
    averaged: bool
    """Whether a moving average of the weights is kept."""

    @property
    def outside(self) -> int:
        """Parameters outside the blocks: embeddings, head."""
        return max(self.parameters - sum(self.blocks), 0)


@dataclass(frozen=True)
class Layout:
    """One way to run a step: `width` devices shard each matrix (tensor parallelism), `stages` such groups divide the
    blocks (pipeline parallelism), and there are `replicas` of this. A stage has `chunks` runs of blocks."""

    strategy: str
    width: int
    replicas: int
    recompute: bool
    stages: int = 1
    chunks: int = 1

    @property
    def sharded(self) -> bool:
        return self.strategy not in ("single", "ddp")

    @property
    def runs(self) -> bool:
        """Whether bigmodel can train with this layout; otherwise it is only estimated."""
        return self.stages == 1

    def __str__(self) -> str:
        return self.strategy + " + recompute" * self.recompute


@dataclass
class LayoutEstimate:
    """The cost of a layout. Bytes and seconds are of one device and one optimizer step."""

    layout: Layout
    micro_batch: int
    accumulate: int
    memory: Memory
    fits: bool
    largest_micro_batch: int
    sent: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def step_seconds(self) -> float:
        return sum(self.seconds.values())


def possible_layouts(
    cluster: Cluster, batch: int, can_shard: Callable[[int], bool], can_recompute: bool
) -> list[Layout]:
    """Every reasonable layout, the simplest first."""
    found = [("single", 1, 1)] if cluster.count == 1 else [("ddp", 1, cluster.count), ("fsdp", 1, cluster.count)]
    for width in (2, 4, 8):
        if cluster.count > 1 and cluster.count % width == 0 and width <= cluster.per_node and can_shard(width):
            found.append((f"tp{width} x fsdp", width, cluster.count // width))
    found = [f for f in found if f[2] <= batch]  # every replica needs a sample
    return [Layout(*f, recompute) for recompute in ((False, True) if can_recompute else (False,)) for f in found]


def peak_memory(layout: Layout, model: Model, work: Work, accumulate: int) -> Memory:
    """The peak memory of each device."""
    if not layout.sharded:
        found = Memory(**vars(work.memory))
        gradient_bytes = model.trained * BYTES_FP32
        if layout.strategy == "ddp" or accumulate > 1:  # all gradients exist after the first backward pass
            found.gradients = max(found.gradients, gradient_bytes)
        found.weights += model.parameters * BYTES_FP32 * model.averaged
        return found
    shard_count = layout.width * layout.replicas
    gathered = 2 * max(model.blocks, default=0) + model.outside  # a block, the next one, and the parameters outside
    reduced = max(model.blocks, default=model.outside)
    return Memory(
        weights=round(
            model.parameters * BYTES_FP32 * (1 + model.averaged) / shard_count + gathered * BYTES_BF16 / layout.width
        ),
        gradients=round(model.trained * BYTES_FP32 / shard_count + reduced * (BYTES_BF16 + BYTES_FP32) / layout.width),
        optimizer=round(model.state / shard_count),
        activations=round(work.live / layout.width),
    )


def estimate_layout(
    layout: Layout,
    cluster: Cluster,
    model: Model,
    work: Callable[[int], Work],
    batch: int,
    outputs: Callable[[int], float],
    largest: int,
) -> LayoutEstimate:
    """The estimate of `layout` for an optimizer step on `batch` samples.

    `work` and `outputs` (bytes of the blocks' outputs) are functions of the micro-batch; `largest` is the
    largest micro-batch that fits.
    """
    samples_per_replica = -(-batch // layout.replicas)
    accumulate = -(-samples_per_replica // max(min(largest, samples_per_replica), 1))
    micro = -(-samples_per_replica // accumulate)
    work_done = work(micro)
    memory_needed = peak_memory(layout, model, work_done, accumulate)
    found = LayoutEstimate(
        layout, micro, accumulate, memory_needed, largest >= 1 and memory_needed.total <= cluster.device.usable, largest
    )
    group = Ring(layout.replicas, max(1, cluster.per_node // layout.width), cluster.device)
    forward, backward = work_done.forward * accumulate, work_done.backward * accumulate
    found.seconds = {"forward": forward, "backward": backward, "optimizer": work_done.optimizer}
    if layout.strategy == "ddp":
        size = float(model.trained * BYTES_FP32)
        last = group.all_reduce(min(size, BUCKET_BYTES))
        # Only the last micro-batch's backward pass communicates (no_sync before).
        found.seconds["waiting"] = max(group.all_reduce(size) - work_done.backward, 0) + last
        found.sent = 2 * group.bytes_sent(size)
    elif layout.sharded:
        found.seconds["optimizer"] = work_done.optimizer / layout.width / layout.replicas
        _add_fsdp_traffic(found, group, model, work_done)
        waiting, sent = tensor_parallel_traffic(layout, cluster, outputs(micro))
        found.seconds["waiting"] += accumulate * waiting
        found.sent += accumulate * sent
    return found


def _add_fsdp_traffic(found: LayoutEstimate, group: Ring, model: Model, work_done: Work) -> None:
    """Add FSDP's gathers and scatters, one block at a time, for every micro-batch."""
    width = found.layout.width
    weights = model.parameters * BYTES_BF16 / width
    gradients = model.trained * BYTES_FP32 / width
    units = len(model.blocks) + 1
    gather = units * group.all_gather(weights / units)
    scatter = units * group.all_gather(gradients / units)
    ends = (gather + scatter) / units
    forward = max(gather - work_done.forward, 0)
    backward = max(gather + scatter - work_done.backward, 0)
    found.seconds["waiting"] = found.accumulate * (forward + backward + ends + 3 * units * HOST_SECONDS)
    found.sent += found.accumulate * (2 * group.bytes_sent(weights) + group.bytes_sent(gradients))


def tensor_parallel_traffic(layout: Layout, cluster: Cluster, size: float) -> tuple[float, float]:
    """Seconds and bytes sent by tensor parallelism: four all-reduces of `size` bytes of outputs, six with recompute."""
    group = Ring(layout.width, cluster.per_node, cluster.device)
    times = 6 if layout.recompute else 4
    return times * group.all_reduce(size), times * 2 * group.bytes_sent(size)


def choose_layout(found: list[LayoutEstimate]) -> tuple[LayoutEstimate | None, str]:
    """The fastest layout that fits, or a simpler one at most 3% slower; and the reason."""
    fitting = [s for s in found if s.fits]
    if not fitting:
        least = min(found, key=lambda s: s.memory.total)
        return None, f"nothing fits: {least.layout} needs least, {least.memory.total / 1e9:.1f} GB a device"
    fastest = min(s.step_seconds for s in fitting)
    chosen = next(s for s in fitting if s.step_seconds <= 1.03 * fastest)
    if len(found) == 1:
        return chosen, "one device, and it fits" if chosen.layout.strategy == "single" else "it fits"
    reasons = []
    for other in found:
        if other is chosen:
            continue
        if not other.fits:
            reasons.append(f"{other.layout} does not fit ({other.memory.total / 1e9:.0f} GB)")
        elif other.step_seconds > chosen.step_seconds:
            reasons.append(f"{other.layout} is {other.step_seconds / chosen.step_seconds - 1:.0%} slower")
        else:
            reasons.append(f"{other.layout} is no more than 3% faster")
    return chosen, "; ".join(reasons[:4])


def largest_fitting(fits: Callable[[int], bool], limit: int = 1 << 20) -> int:
    """The largest micro-batch that fits, 0 where none does; `fits` must be monotonic."""
    if not fits(1):
        return 0
    low, high = 1, 2
    while high <= limit and fits(high):
        low, high = high, high * 2
    while high - low > max(1, low // 50):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def line_through(value_low: float, value_high: float, points: tuple[int, int]) -> Callable[[int], float]:
    """The line through the two values at the two `points`, clipped at 0."""
    if points[0] == points[1]:
        return lambda x: value_low * x / points[0]
    slope = (value_high - value_low) / (points[1] - points[0])
    return lambda x: max(value_low + slope * (x - points[0]), 0.0)


def interpolate_work(low: Work, high: Work, points: tuple[int, int], target: int) -> Work:
    """The work at `target`, interpolated linearly between that at two `points`: micro-batches, or depths."""

    def line(value_low: float, value_high: float) -> float:
        return line_through(value_low, value_high, points)(target)

    memory_needed = {part: math.ceil(line(size, getattr(high.memory, part))) for part, size in vars(low.memory).items()}
    times = (line(getattr(low, k), getattr(high, k)) for k in ("live", "forward", "backward", "optimizer"))
    return Work(Memory(**memory_needed), *times)
