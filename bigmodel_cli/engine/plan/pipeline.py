"""Estimates pipeline parallelism: runs of consecutive blocks on separate devices. bigmodel cannot train this way.

``ppS`` has S stages, which run the forward and backward passes of micro-batches in alternation (1F1B, Narayanan
et al. 2021). In ``ppSxV`` each stage has V chunks of blocks from different parts of the model (interleaved), which
shortens the bubble to (S - 1) / V micro-batches. Each replica of a stage holds its bf16 weights and fp32 gradients
in full, and shards only fp32 weights and optimizer state (ZeRO-1, Rajbhandari et al. 2020): gradients are
reduce-scattered and weights gathered once a step. ``tpN x ppS`` also shards each stage's matrices over N devices of
a node. Tensor parallelism uses the nearest devices, then come stages, then replicas.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from bigmodel_cli.engine.plan.devices import Cluster
from bigmodel_cli.engine.plan.network import Ring
from bigmodel_cli.engine.plan.strategies import (
    BYTES_BF16,
    BYTES_FP32,
    Layout,
    LayoutEstimate,
    Model,
    Work,
    tensor_parallel_traffic,
)
from bigmodel_cli.engine.plan.trace import Memory

STRATEGY_NAME = re.compile(r"(?:tp([1-9]\d*) x )?pp([1-9]\d*)(?:x([1-9]\d*))?")


def pipeline_layouts(
    name: str, cluster: Cluster, batch: int, blocks: int, can_shard: Callable[[int], bool], can_recompute: bool
) -> list[Layout]:
    """The layouts called `name`, without and with recompute; empty where the name is malformed or it is not possible.

    Args:
        blocks: the number of equal blocks of the model.
    """
    found = STRATEGY_NAME.fullmatch(name)
    if found is None:
        return []
    width, stages, chunks = (int(n or 1) for n in found.groups())
    replicas, remainder = divmod(cluster.count, width * stages)
    possible = stages > 1 and not remainder and replicas <= batch and stages * chunks <= blocks + 2
    if not possible or (width > 1 and not (width <= cluster.per_node and can_shard(width))):
        return []
    return [
        Layout(name, width, replicas, recompute, stages, chunks) for recompute in (False, True)[: 1 + can_recompute]
    ]


def describe_possible(cluster: Cluster, batch: int, blocks: int) -> str:
    """What would be possible, as the second part of an error message."""
    if not blocks:
        return "expected a model of many equal blocks"
    return (
        f"expected tpN x ppSxV: {cluster.count} devices in replicas of N x S, at most {batch} of them, "
        f"S x V at most {blocks + 2}, N that divides the model's matrices"
    )


def balance_stages(blocks: int, stages: int, block: float, outside_work: float) -> tuple[int, int]:
    """The blocks of the last stage, and the most of any other, such that the slowest stage is as fast as possible.

    A block takes `block`. The last stage also takes `outside_work`, for what is in no block, and has fewer blocks.
    """

    def others(last: int) -> int:
        return -(-(blocks - last) // (stages - 1))

    last = min(range(blocks // stages + 1), key=lambda n: max(n * block + outside_work, others(n) * block))
    return last, others(last)


def estimate_pipeline(
    layout: Layout,
    cluster: Cluster,
    model: Model,
    work_of: Callable[[int, int], Work],
    batch: int,
    outputs: Callable[[int], float],
) -> LayoutEstimate:
    """The estimate of `layout` with the micro-batch that makes it fastest.

    Args:
        work_of: the work of (samples, blocks), which includes what is in no block.
        outputs: the bytes of all blocks' outputs, by micro-batch.
    """
    samples_per_replica = -(-batch // layout.replicas)
    sizes = [2**n for n in range(samples_per_replica.bit_length())]
    found = [
        _estimate_with(size, -(-samples_per_replica // size), layout, cluster, model, work_of, outputs(size))
        for size in sizes
    ]
    return min([one for one in found if one.fits] or found[:1], key=lambda one: one.step_seconds)


def _estimate_with(
    micro: int,
    micro_batches: int,
    layout: Layout,
    cluster: Cluster,
    model: Model,
    work_of: Callable[[int, int], Work],
    outputs: float,
) -> LayoutEstimate:
    """The estimate with `micro_batches` micro-batches of `micro` samples."""
    depth = len(model.blocks)
    outside_work, full_work = work_of(micro, 0), work_of(micro, depth)
    forward, backward = (
        (full_work.forward - outside_work.forward) / depth,
        (full_work.backward - outside_work.backward) / depth,
    )
    traffic, sent = tensor_parallel_traffic(layout, cluster, outputs / depth)
    block, rest = forward + backward + traffic, outside_work.forward + outside_work.backward
    last, max_blocks = balance_stages(depth, layout.stages, block, rest)
    head_is_slowest = last * block + rest > max_blocks * block  # the last stage is the slowest
    count = last if head_is_slowest else max_blocks
    forward, backward = (
        count * forward + head_is_slowest * outside_work.forward,
        count * backward + head_is_slowest * outside_work.backward,
    )
    elements_per_device = (max_blocks * model.blocks[0] + model.outside) / layout.width
    live_per_stage = (full_work.live - outside_work.live) / depth * max_blocks
    memory_needed = _memory(
        layout,
        model,
        elements_per_device,
        (outside_work.live + live_per_stage * _in_flight(layout, micro_batches)) / layout.width,
    )
    fits = memory_needed.total <= cluster.device.usable
    found = LayoutEstimate(
        layout, micro, micro_batches, memory_needed, fits, 0
    )  # no largest: a larger batch is more micro-batches
    found.seconds = {
        "forward": micro_batches * forward,
        "backward": micro_batches * backward,
        "waiting": micro_batches * count * traffic,
    }
    found.seconds["optimizer"] = full_work.optimizer * elements_per_device / model.parameters / layout.replicas
    found.sent = micro_batches * count * sent
    _add_stage_transfers(found, cluster, outputs / depth / layout.width)
    busy = found.seconds["forward"] + found.seconds["backward"] + found.seconds["waiting"]
    found.seconds["bubble"] = busy / micro_batches * (layout.stages - 1) / layout.chunks
    _add_gradient_reduction(found, cluster, elements_per_device, forward, backward, max_blocks + 1)
    return found


def _in_flight(layout: Layout, micro_batches: int) -> float:
    """The number of micro-batches whose activations the first stage holds at once (Korthikanti et al. 2022)."""
    more = (layout.stages - 1) / layout.chunks if layout.chunks > 1 else 0
    return min(layout.stages + more, micro_batches)


def _memory(layout: Layout, model: Model, elements_per_device: float, live: float) -> Memory:
    """The memory of a first stage; parameters in no block count in full, as if they were tied."""
    masters = BYTES_FP32 * (1 + model.averaged) / layout.replicas
    return Memory(
        weights=round(elements_per_device * (BYTES_BF16 + masters)),
        gradients=round(elements_per_device * BYTES_FP32 * model.trained / model.parameters),
        optimizer=round(model.state * elements_per_device / model.parameters / layout.replicas),
        activations=round(live),
    )


def _add_stage_transfers(found: LayoutEstimate, cluster: Cluster, size: float) -> None:
    """Add the transfers between stages: `size` bytes of output forward and of gradient backward, for every chunk."""
    layout = found.layout
    inside = layout.width * layout.stages <= cluster.per_node
    times = 2 * layout.chunks * found.accumulate
    found.seconds["waiting"] += times * Ring(2, 2 if inside else 1, cluster.device).send(size)
    found.sent += times * size


def _add_gradient_reduction(
    found: LayoutEstimate, cluster: Cluster, elements_per_device: float, forward: float, backward: float, units: int
) -> None:
    """Add the reduction over the replicas of a stage, once a step; it overlaps with one micro-batch, except for the
    first and last of its `units`."""
    layout = found.layout
    group = Ring(layout.replicas, max(1, cluster.per_node // (layout.width * layout.stages)), cluster.device)
    scatter, gather = (
        group.all_gather(elements_per_device * BYTES_FP32),
        group.all_gather(elements_per_device * BYTES_BF16),
    )
    hidden = max(scatter - backward, 0) + max(gather - forward, 0)
    found.seconds["waiting"] += hidden + (scatter + gather) / units
    found.sent += group.bytes_sent(elements_per_device * (BYTES_FP32 + BYTES_BF16))
