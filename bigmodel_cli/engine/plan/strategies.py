"""How a step is spread over devices, and what each way costs: memory, communication, time.

- ``single``: one process.
- ``ddp``: every device has the whole model; gradients are all-reduced while the backward pass runs
  (Li et al. 2020), in buckets that are the gradients themselves.
- ``fsdp``: weights, gradients and optimizer state are cut into one part a device; a block's bf16 weights are
  gathered before it runs, forward and backward, the next block's meanwhile; its gradients are
  reduce-scattered in fp32 (Zhao et al. 2023; ZeRO-3, Rajbhandari et al. 2020).
- ``tpN``: each block's matrices are cut over N devices of a node as well, with the sequence cut in between
  (Shoeybi et al. 2019; Korthikanti et al. 2022): two all-reduces' worth of traffic a block forward, two
  backward, none of it hidden. Over the rest of the devices it is ``fsdp``.
- ``ppS``: the blocks cut into S stages, see ``pipeline.py``.

Hidden means: what communication takes is paid only beyond what computes at that time, and for the
first and last piece, which nothing can hide.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from bigmodel_cli.engine.plan.devices import Cluster
from bigmodel_cli.engine.plan.network import Group
from bigmodel_cli.engine.plan.trace import Memory

BUCKET = 25 * 2**20
"""Bytes of DDP's buckets (torch's default)."""
HOST = 1e-4
"""Seconds of the host for each gather and scatter of FSDP, where hooks in Python copy a block's tensors in and out and
launch some dozen kernels: assumed. Nothing beside large blocks, and most of the step of a tiny model."""
HALF, FULL = 2, 4


@dataclass(frozen=True)
class Work:
    """What one device computes and holds for one micro-batch, before it is spread.

    `memory` is of the unspread step; `live` the peak of what is neither weights, gradients nor state.
    """

    memory: Memory
    live: float
    forward: float
    backward: float
    optimizer: float


@dataclass(frozen=True)
class Model:
    """The numbers of a model that spreading depends on."""

    parameters: int
    trained: int
    blocks: list[int]
    """Numbers in each repeated block."""
    state: int
    """Bytes of optimizer state."""
    averaged: bool
    """Whether there is a moving average of the weights as well."""

    @property
    def outside(self) -> int:
        """Numbers in no block: embeddings, head."""
        return max(self.parameters - sum(self.blocks), 0)


@dataclass(frozen=True)
class Layout:
    """One way to run a step: `width` devices share each tensor of a block (tensor parallel), `stages` such groups the
    blocks (pipeline), in `replicas`; each stage has `chunks` runs of blocks."""

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
        """Whether there is training of this kind here; else it is only predicted."""
        return self.stages == 1

    def __str__(self) -> str:
        return self.strategy + " + recompute" * self.recompute


@dataclass
class Spread:
    """A layout with its figures. Bytes and seconds are of one device and one optimizer step."""

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


def layouts(cluster: Cluster, batch: int, can_cut: Callable[[int], bool], can_recompute: bool) -> list[Layout]:
    """Every way that makes sense; the simplest first."""
    found = [("single", 1, 1)] if cluster.count == 1 else [("ddp", 1, cluster.count), ("fsdp", 1, cluster.count)]
    for width in (2, 4, 8):
        if cluster.count > 1 and cluster.count % width == 0 and width <= cluster.per_node and can_cut(width):
            found.append((f"tp{width} x fsdp", width, cluster.count // width))
    found = [f for f in found if f[2] <= batch]  # a replica without a sample would wait for the others
    return [Layout(*f, again) for again in ((False, True) if can_recompute else (False,)) for f in found]


def memory(layout: Layout, model: Model, work: Work, accumulate: int) -> Memory:
    """What each device holds at its peak."""
    if not layout.sharded:
        found = Memory(**vars(work.memory))
        whole = model.trained * FULL
        if layout.strategy == "ddp" or accumulate > 1:  # all gradients are there from the first backward pass on
            found.gradients = max(found.gradients, whole)
        found.weights += model.parameters * FULL * model.averaged
        return found
    parts = layout.width * layout.replicas
    gathered = 2 * max(model.blocks, default=0) + model.outside  # a block, the next, and what belongs to none
    reduced = max(model.blocks, default=model.outside)
    return Memory(
        weights=round(model.parameters * FULL * (1 + model.averaged) / parts + gathered * HALF / layout.width),
        gradients=round(model.trained * FULL / parts + reduced * (HALF + FULL) / layout.width),
        optimizer=round(model.state / parts),
        activations=round(work.live / layout.width),
    )


def spread(
    layout: Layout,
    cluster: Cluster,
    model: Model,
    work: Callable[[int], Work],
    batch: int,
    outputs: Callable[[int], float],
    largest: int,
) -> Spread:
    """The figures of `layout` for an optimizer step on `batch` samples.

    `work` and `outputs` (bytes that blocks hand on) are functions of the micro-batch; `largest` is the
    most that fits.
    """
    each = -(-batch // layout.replicas)
    accumulate = -(-each // max(min(largest, each), 1))
    micro = -(-each // accumulate)
    done = work(micro)
    held = memory(layout, model, done, accumulate)
    found = Spread(layout, micro, accumulate, held, largest >= 1 and held.total <= cluster.device.usable, largest)
    group = Group(layout.replicas, max(1, cluster.per_node // layout.width), cluster.device)
    forward, backward = done.forward * accumulate, done.backward * accumulate
    found.seconds = {"forward": forward, "backward": backward, "optimizer": done.optimizer}
    if layout.strategy == "ddp":
        size = float(model.trained * FULL)
        last = group.all_reduce(min(size, BUCKET))
        # Only the last micro-batch's backward pass sends anything (no_sync before).
        found.seconds["waiting"] = max(group.all_reduce(size) - done.backward, 0) + last
        found.sent = 2 * group.sent(size)
    elif layout.sharded:
        found.seconds["optimizer"] = done.optimizer / layout.width / layout.replicas
        _sharded(found, group, model, done)
        waiting, sent = cut_traffic(layout, cluster, outputs(micro))
        found.seconds["waiting"] += accumulate * waiting
        found.sent += accumulate * sent
    return found


def _sharded(found: Spread, group: Group, model: Model, done: Work) -> None:
    """Gathers and scatters, a block at a time, for every micro-batch."""
    width = found.layout.width
    weights = model.parameters * HALF / width
    gradients = model.trained * FULL / width
    pieces = len(model.blocks) + 1
    gather = pieces * group.all_gather(weights / pieces)
    scatter = pieces * group.all_gather(gradients / pieces)
    ends = (gather + scatter) / pieces
    forward = max(gather - done.forward, 0)
    backward = max(gather + scatter - done.backward, 0)
    found.seconds["waiting"] = found.accumulate * (forward + backward + ends + 3 * pieces * HOST)
    found.sent += found.accumulate * (2 * group.sent(weights) + group.sent(gradients))


def cut_traffic(layout: Layout, cluster: Cluster, size: float) -> tuple[float, float]:
    """Seconds and bytes sent of tensor parallelism: `size` bytes of outputs, bf16, four times; with recompute six."""
    group = Group(layout.width, cluster.per_node, cluster.device)
    times = 6 if layout.recompute else 4
    return times * group.all_reduce(size), times * 2 * group.sent(size)


def choose(found: list[Spread]) -> tuple[Spread | None, str]:
    """The fastest that fits, or a simpler one at most 3% slower; and why."""
    able = [s for s in found if s.fits]
    if not able:
        least = min(found, key=lambda s: s.memory.total)
        return None, f"nothing fits: {least.layout} needs least, {least.memory.total / 1e9:.1f} GB a device"
    fastest = min(s.step_seconds for s in able)
    chosen = next(s for s in able if s.step_seconds <= 1.03 * fastest)
    if len(found) == 1:
        return chosen, "one device, and it fits" if chosen.layout.strategy == "single" else "it fits"
    said = []
    for other in found:
        if other is chosen:
            continue
        if not other.fits:
            said.append(f"{other.layout} does not fit ({other.memory.total / 1e9:.0f} GB)")
        elif other.step_seconds > chosen.step_seconds:
            said.append(f"{other.layout} is {other.step_seconds / chosen.step_seconds - 1:.0%} slower")
        else:
            said.append(f"{other.layout} is no more than 3% faster")
    return chosen, "; ".join(said[:4])


def largest_fitting(fits: Callable[[int], bool], limit: int = 1 << 20) -> int:
    """The largest micro-batch that fits, 0 where not even one does; `fits` goes from true to false once."""
    if not fits(1):
        return 0
    low, high = 1, 2
    while high <= limit and fits(high):
        low, high = high, high * 2
    while high - low > max(1, low // 50):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def affine(one: float, two: float, at: tuple[int, int]) -> Callable[[int], float]:
    """The line through the values `one` and `two` at the two places."""
    if at[0] == at[1]:
        return lambda x: one * x / at[0]
    slope = (two - one) / (at[1] - at[0])
    return lambda x: max(one + slope * (x - at[0]), 0.0)


def along(low: Work, high: Work, places: tuple[int, int], at: int) -> Work:
    """The work at `at`, on the lines through that at the two places: of micro-batches, or of depths."""

    def line(one: float, two: float) -> float:
        return affine(one, two, places)(at)

    held = {part: math.ceil(line(size, getattr(high.memory, part))) for part, size in vars(low.memory).items()}
    times = (line(getattr(low, k), getattr(high, k)) for k in ("live", "forward", "backward", "optimizer"))
    return Work(Memory(**held), *times)
