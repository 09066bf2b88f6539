"""Pipeline stages: runs of neighbouring blocks, each on devices of its own. Predicted alone: nothing here trains so.

``ppS`` has S stages, which compute one micro-batch after another, forward and backward in turn (1F1B, Narayanan et
al. 2021). In ``ppSxV`` each stage has V chunks of blocks from all over the model (interleaved), so that all stages
are at work earlier: (S - 1) / V micro-batches pass while some wait. A stage's bf16 weights and fp32 gradients are
whole on each of its replicas, which share fp32 weights and optimizer state alone (ZeRO-1, Rajbhandari et al. 2020):
the gradients are reduce-scattered and the weights gathered once a step. ``tpN x ppS`` cuts each stage's matrices
over N devices of a node as well. The nearest devices share tensors, the next are stages, the farthest replicas.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from bigmodel_cli.engine.plan.devices import Cluster
from bigmodel_cli.engine.plan.network import Group
from bigmodel_cli.engine.plan.strategies import FULL, HALF, Layout, Model, Spread, Work, cut_traffic
from bigmodel_cli.engine.plan.trace import Memory

NAMED = re.compile(r"(?:tp([1-9]\d*) x )?pp([1-9]\d*)(?:x([1-9]\d*))?")


def pipelines(
    name: str, cluster: Cluster, batch: int, blocks: int, can_cut: Callable[[int], bool], can_recompute: bool
) -> list[Layout]:
    """The layouts called `name`, without and with recompute; none where it is no such name, or not possible.

    Args:
        blocks: how many equal ones the model consists of.
    """
    found = NAMED.fullmatch(name)
    if found is None:
        return []
    width, stages, chunks = (int(n or 1) for n in found.groups())
    replicas, left = divmod(cluster.count, width * stages)
    possible = stages > 1 and not left and replicas <= batch and stages * chunks <= blocks + 2
    if not possible or (width > 1 and not (width <= cluster.per_node and can_cut(width))):
        return []
    return [Layout(name, width, replicas, again, stages, chunks) for again in (False, True)[: 1 + can_recompute]]


def expected(cluster: Cluster, batch: int, blocks: int) -> str:
    """What would have been possible."""
    if not blocks:
        return "expected a model of many equal blocks"
    return (
        f"expected tpN x ppSxV: {cluster.count} devices in replicas of N x S, at most {batch} of them, "
        f"S x V at most {blocks + 2}, N that cuts the model"
    )


def cut(blocks: int, stages: int, block: float, ends: float) -> tuple[int, int]:
    """Blocks of the last stage, and of the others at most, such that the slowest stage takes least.

    A block takes `block`; the last stage takes `ends` as well, what belongs to no block, and has fewer blocks for it.
    """

    def others(last: int) -> int:
        return -(-(blocks - last) // (stages - 1))

    last = min(range(blocks // stages + 1), key=lambda n: max(n * block + ends, others(n) * block))
    return last, others(last)


def spread(
    layout: Layout,
    cluster: Cluster,
    model: Model,
    part: Callable[[int, int], Work],
    batch: int,
    outputs: Callable[[int], float],
) -> Spread:
    """The figures of `layout` with the micro-batch that makes it fastest.

    Args:
        part: the work on so many samples of so many blocks and what belongs to none.
        outputs: bytes that all blocks hand on, by the micro-batch.
    """
    each = -(-batch // layout.replicas)
    sizes = [2**n for n in range(each.bit_length())]
    found = [_at(size, -(-each // size), layout, cluster, model, part, outputs(size)) for size in sizes]
    return min([one for one in found if one.fits] or found[:1], key=lambda one: one.step_seconds)


def _at(
    micro: int,
    passes: int,
    layout: Layout,
    cluster: Cluster,
    model: Model,
    part: Callable[[int, int], Work],
    outputs: float,
) -> Spread:
    """The figures with `passes` micro-batches of `micro` samples."""
    depth = len(model.blocks)
    ends, whole = part(micro, 0), part(micro, depth)
    forward, backward = (whole.forward - ends.forward) / depth, (whole.backward - ends.backward) / depth
    traffic, sent = cut_traffic(layout, cluster, outputs / depth)
    block, rest = forward + backward + traffic, ends.forward + ends.backward
    last, most = cut(depth, layout.stages, block, rest)
    head = last * block + rest > most * block  # the last stage is the slowest
    count = last if head else most
    forward, backward = count * forward + head * ends.forward, count * backward + head * ends.backward
    numbers = (most * model.blocks[0] + model.outside) / layout.width
    kept = (whole.live - ends.live) / depth * most
    held = _memory(layout, model, numbers, (ends.live + kept * _in_flight(layout, passes)) / layout.width)
    fits = held.total <= cluster.device.usable
    found = Spread(layout, micro, passes, held, fits, 0)  # no largest: a larger batch is more micro-batches
    found.seconds = {"forward": passes * forward, "backward": passes * backward, "waiting": passes * count * traffic}
    found.seconds["optimizer"] = whole.optimizer * numbers / model.parameters / layout.replicas
    found.sent = passes * count * sent
    _handed_on(found, cluster, outputs / depth / layout.width)
    busy = found.seconds["forward"] + found.seconds["backward"] + found.seconds["waiting"]
    found.seconds["bubble"] = busy / passes * (layout.stages - 1) / layout.chunks
    _reduced(found, cluster, numbers, forward, backward, most + 1)
    return found


def _in_flight(layout: Layout, passes: int) -> float:
    """Micro-batches whose activations the first stage holds at once, of all its blocks (Korthikanti et al. 2022)."""
    more = (layout.stages - 1) / layout.chunks if layout.chunks > 1 else 0
    return min(layout.stages + more, passes)


def _memory(layout: Layout, model: Model, numbers: float, live: float) -> Memory:
    """Of a first stage with `numbers` on each device. What is in no block counts in full there, as where it is tied."""
    masters = FULL * (1 + model.averaged) / layout.replicas
    return Memory(
        weights=round(numbers * (HALF + masters)),
        gradients=round(numbers * FULL * model.trained / model.parameters),
        optimizer=round(model.state * numbers / model.parameters / layout.replicas),
        activations=round(live),
    )


def _handed_on(found: Spread, cluster: Cluster, size: float) -> None:
    """From stage to stage: `size` bytes of a block's output forward and of its gradient backward, for every chunk."""
    layout = found.layout
    inside = layout.width * layout.stages <= cluster.per_node
    times = 2 * layout.chunks * found.accumulate
    found.seconds["waiting"] += times * Group(2, 2 if inside else 1, cluster.device).send(size)
    found.sent += times * size


def _reduced(found: Spread, cluster: Cluster, numbers: float, forward: float, backward: float, pieces: int) -> None:
    """Once a step, over the replicas of a stage: hidden behind one micro-batch, but for the first and last piece."""
    layout = found.layout
    group = Group(layout.replicas, max(1, cluster.per_node // (layout.width * layout.stages)), cluster.device)
    scatter, gather = group.all_gather(numbers * FULL), group.all_gather(numbers * HALF)
    hidden = max(scatter - backward, 0) + max(gather - forward, 0)
    found.seconds["waiting"] += hidden + (scatter + gather) / pieces
    found.sent += group.sent(numbers * (FULL + HALF))
