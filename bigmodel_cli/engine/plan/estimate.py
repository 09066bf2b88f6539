"""Recipe and cluster -> Plan: what a run would take, and how to run it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.recipe import Recipe
from bigmodel_cli.core.registry import models
from bigmodel_cli.core.types import Batch, SampleKey, Task
from bigmodel_cli.engine.build.data import load_data, train_and_val
from bigmodel_cli.engine.build.model import architecture, build_task
from bigmodel_cli.engine.plan import pipeline
from bigmodel_cli.engine.plan.devices import Cluster
from bigmodel_cli.engine.plan.roofline import Ceilings, Stated, phases
from bigmodel_cli.engine.plan.step import deep_stack, trace_step
from bigmodel_cli.engine.plan.strategies import (
    FULL,
    Layout,
    Model,
    Spread,
    Work,
    affine,
    along,
    choose,
    largest_fitting,
    layouts,
    memory,
    spread,
)
from bigmodel_cli.engine.plan.trace import Memory, Trace

MOST_SAMPLES = 8
"""Traces are made with at most so many samples; the line goes on from there. On a CPU it is the micro-batch itself,
since caches bend the line."""
FEWEST = 2
"""Samples in a trace: BatchNorm takes no single one."""
DEEP, DEPTHS = 16, (4, 6)
"""From so many equal blocks on, two shallower models are traced, and the line goes on from there: 80 blocks take no
longer than 8."""


@dataclass(frozen=True)
class Plan:
    """Everything that ``bigmodel plan`` says. Times in seconds, sizes in bytes."""

    cluster: Cluster
    precision: str
    parameters: int
    trained: int
    batch: int
    unit: str
    units: int
    """Images or tokens in an optimizer step."""
    flops: float
    """Of an optimizer step, all devices together, recomputation not counted."""
    steps: int
    spreads: list[Spread]
    chosen: Spread | None
    why: str
    price: float

    @property
    def seconds(self) -> float:
        return self.steps * self.chosen.step_seconds if self.chosen else 0.0

    @property
    def cost(self) -> float:
        """At `price` an hour of one device."""
        return self.seconds / 3600 * self.cluster.count * self.price

    @property
    def utilisation(self) -> float:
        """Model FLOPs over the peak of all devices (MFU, Chowdhery et al. 2022)."""
        device = self.cluster.device
        peak = device.bf16 if self.precision == "bf16" and device.bf16 else device.fp32
        if self.chosen is None or not peak:
            return 0.0
        return self.flops / self.chosen.step_seconds / self.cluster.count / peak

    def largest_batch(self, one: Spread) -> int:
        """Samples a step without accumulation."""
        return one.largest_micro_batch * one.layout.replicas

    def to_dict(self) -> dict[str, Any]:
        derived = {"seconds": self.seconds, "cost": self.cost, "utilisation": self.utilisation}
        rows = [
            {**asdict(s), "step_seconds": s.step_seconds, "total_memory": s.memory.total,
             "largest_batch": self.largest_batch(s), "runs": s.layout.runs}
            for s in self.spreads
        ]  # fmt: skip
        chosen = None if self.chosen is None else str(self.chosen.layout)
        return {**asdict(self), **derived, "spreads": rows, "chosen": chosen}


def make_plan(recipe: Recipe, cluster: Cluster, strategy: str | None, price: float) -> Plan:
    """Plan the run of `recipe` on `cluster`; nothing is trained and no weight is allocated.

    Raises:
        InputError: the data is not there, or no such strategy is possible.
    """
    tracer = Tracer(recipe, cluster)
    entry = models.get(recipe.model.name)
    can_cut = functools.cache(lambda width: cuttable(recipe, tracer.task, width))
    can_recompute = "checkpointing" in entry.schema.model_fields and not recipe.model.options["checkpointing"]
    batch = min(recipe.train.batch_size, tracer.samples)
    able = layouts(cluster, batch, can_cut, can_recompute)
    ways = [w for w in able if strategy in (None, w.strategy, w.strategy.split()[0])]
    if strategy is not None and "pp" in strategy:
        ways = pipeline.pipelines(strategy, cluster, batch, tracer.depth or 0, can_cut, can_recompute)
        if not ways:
            raise InputError(f"--strategy {strategy}", pipeline.expected(cluster, batch, tracer.depth or 0))
    if not ways:
        possible = ", ".join(dict.fromkeys(w.strategy.split()[0] for w in able))
        what = f"--strategy {strategy}" if strategy else f"a batch of {batch} over {cluster.count} devices"
        raise InputError(what, f"expected one of {possible}" if possible else "expected a sample for every device")
    spreads = [tracer.spread(way, batch) for way in ways]
    chosen, why = choose(spreads)
    total = recipe.train.epochs * -(-tracer.samples // batch)
    model = tracer.model()
    return Plan(
        cluster=cluster,
        precision="bf16" if tracer.half else "fp32",
        parameters=model.parameters,
        trained=model.trained,
        batch=batch,
        unit=tracer.task.unit,
        units=tracer.task.count({k: v.expand(batch, *v.shape[1:]) for k, v in tracer.one.items()}),
        flops=tracer.flops(batch),
        steps=min(total, recipe.train.max_steps or total),
        spreads=spreads,
        chosen=chosen,
        why=why,
        price=price,
    )


def cuttable(recipe: Recipe, task: Task, width: int) -> bool:
    """Whether the recipe's model says how its matrices are cut over so many devices."""
    from bigmodel_cli.engine.distributed.tensor_parallel import plan_for

    try:
        with torch.device("meta"):
            plan_for(recipe, architecture(recipe, task.spec), width)
    except InputError:
        return False
    return True


class Tracer:
    """Traces of a recipe's step at the micro-batches that are asked for, each made once.

    Without `calibrate` a CPU is not measured, and times mean nothing.
    """

    def __init__(self, recipe: Recipe, cluster: Cluster, calibrate: bool = True) -> None:
        self.recipe, self.cluster = recipe, cluster
        bundle = load_data(recipe.data)
        train, _ = train_and_val(bundle, recipe.data)
        self.samples = len(train)
        self.task: Task = build_task(recipe, bundle.spec)
        raw = train.gather(torch.arange(1))
        self.one: Batch = raw
        self.sample = self.task.prepare(raw, SampleKey(0, 0, raw["index"]))
        device = cluster.device
        self.on_cpu = device.name == "cpu"
        self.half = recipe.placement.precision == "bf16" or (
            recipe.placement.precision == "auto" and device.bf16 is not None
        )
        self.compiled = recipe.placement.compile is True
        self.ceilings = _ceilings(recipe, cluster) if calibrate else Stated(cluster.device)
        stack = deep_stack(recipe, self.task)
        self.depth = stack if stack >= DEEP else None
        """Blocks, where shallower models are traced in place of the whole one."""
        self.trace = functools.lru_cache(maxsize=32)(self._trace)
        self.model = functools.cache(self._model)
        self.work = functools.cache(self._work)

    def _trace(self, batch: int, sharded: bool, recompute: bool, depth: int | None = None) -> Trace:
        return trace_step(
            self.recipe, self.task, self.sample, batch, half=self.half, master=not (sharded and self.half),
            recompute=recompute, small_maps=self.on_cpu, depth=depth,
        )  # fmt: skip

    def whole(self, value: Callable[[Trace], float], sharded: bool = False, recompute: bool = False) -> float:
        """`value` of a step on FEWEST samples through the whole model."""
        if self.depth is None:
            return value(self.trace(FEWEST, sharded, recompute))
        low, high = (value(self.trace(FEWEST, sharded, recompute, depth)) for depth in DEPTHS)
        return affine(low, high, DEPTHS)(self.depth)

    def _model(self) -> Model:
        blocks = self.trace(FEWEST, False, False, DEPTHS[0] if self.depth else None).block_parameters
        return Model(
            parameters=round(self.whole(lambda trace: trace.parameters)),
            trained=round(self.whole(lambda trace: trace.trained)),
            blocks=blocks[:1] * self.depth if self.depth else blocks,
            state=round(self.whole(_state)),
            averaged=self.recipe.train.ema_decay is not None,
        )

    def flops(self, batch: int) -> float:
        """Of a step on `batch` samples; from a few, since it is linear."""
        return self.whole(Trace.flops) / FEWEST * batch

    def _work(self, batch: int, layout: Layout, blocks: int | None = None) -> Work:
        """The memory and times of a step on `batch` samples, on one device of `layout`; of so many `blocks`, or all."""
        depths = DEPTHS if self.depth else (None,)
        found = [self._traced(self.trace(batch, layout.sharded, layout.recompute, d), layout) for d in depths]
        if self.depth is None:
            return found[0]
        return along(found[0], found[1], DEPTHS, self.depth if blocks is None else blocks)

    def _traced(self, trace: Trace, layout: Layout) -> Work:
        times = phases(trace, self.ceilings, layout.width, self.compiled)
        optimizer = times["optimizer"]
        if layout.sharded:  # traced without one: weights, gradient and state are read, weights and state written
            model = self.model()
            moved = model.trained * FULL * 3 + model.state * 2
            optimizer = moved / (self.cluster.device.bandwidth * 0.85)
        return Work(trace.memory(), trace.live(), times["forward"], times["backward"], optimizer)

    def spread(self, layout: Layout, batch: int) -> Spread:
        """The figures of `layout`: the largest micro-batch that fits, and what a step on `batch` takes."""
        model, usable = self.model(), self.cluster.device.usable
        if not layout.sharded:
            least = (model.parameters * (1 + model.averaged) + model.trained) * FULL + model.state
            if least > usable:  # whatever the batch; not worth a trace
                weights = model.parameters * (1 + model.averaged) * FULL
                return Spread(layout, 0, 0, Memory(weights, model.trained * FULL, model.state), False, 0)
        each = -(-batch // layout.replicas)
        high = max(each if self.on_cpu else min(each, MOST_SAMPLES), 2 * FEWEST)
        places = (high // 2, high)

        def work(micro: int, blocks: int | None = None) -> Work:
            return along(self.work(places[0], layout, blocks), self.work(places[1], layout, blocks), places, micro)

        def fits(micro: int) -> bool:
            return memory(layout, model, work(micro), 1).total <= usable

        one = self.whole(lambda trace: sum(trace.block_outputs), layout.sharded, layout.recompute) / FEWEST

        def outputs(micro: int) -> float:
            return one * micro

        if layout.stages > 1:
            return pipeline.spread(layout, self.cluster, model, work, batch, outputs)
        return spread(layout, self.cluster, model, work, batch, outputs, largest_fitting(fits))


def _state(trace: Trace) -> int:
    """Bytes of optimizer state."""
    return sum(stay.size for key, stay in trace.stays.items() if trace.parts.get(key) == "optimizer")


def _ceilings(recipe: Recipe, cluster: Cluster) -> Ceilings:
    if cluster.device.name != "cpu":
        return Stated(cluster.device)
    from bigmodel_cli.core.recipe import PlacementSection
    from bigmodel_cli.engine.device.placement import place
    from bigmodel_cli.engine.plan.ceilings import measured

    return measured(place(PlacementSection(device="cpu", threads=recipe.placement.threads)).threads)
