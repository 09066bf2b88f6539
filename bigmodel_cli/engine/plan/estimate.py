"""Plans a run: memory, time and cost of a recipe on a cluster, for each parallel layout."""

from __future__ import annotations

import contextlib
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
from bigmodel_cli.engine.build.model import build_architecture, build_task
from bigmodel_cli.engine.plan import pipeline
from bigmodel_cli.engine.plan.devices import Cluster
from bigmodel_cli.engine.plan.roofline import Ceilings, DataSheetCeilings, phase_seconds
from bigmodel_cli.engine.plan.step import count_stacked_blocks, trace_step
from bigmodel_cli.engine.plan.strategies import (
    BYTES_FP32,
    Layout,
    LayoutEstimate,
    Model,
    Work,
    choose_layout,
    estimate_layout,
    interpolate_work,
    largest_fitting,
    line_through,
    peak_memory,
    possible_layouts,
)
from bigmodel_cli.engine.plan.trace import Memory, Trace
from bigmodel_cli.models.layers.chunked_loss import chunks_of_gpu
from bigmodel_cli.models.layers.sharded_tables import ROOT

MAX_TRACED_SAMPLES = 8
"""The most samples in a trace; larger micro-batches are extrapolated linearly. On a CPU the micro-batch itself is
traced, since its caches make the time non-linear."""
MIN_TRACED_SAMPLES = 2
"""The fewest samples in a trace: BatchNorm needs more than one."""
MIN_DEEP_BLOCKS, TRACED_DEPTHS = 16, (4, 6)
"""A model of at least MIN_DEEP_BLOCKS equal blocks is extrapolated from two shallower ones, so that 80 blocks take no
longer to trace than 8."""


@dataclass(frozen=True)
class Plan:
    """Everything that ``bigmodel plan`` reports. Times in seconds, sizes in bytes."""

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
    estimates: list[LayoutEstimate]
    chosen: LayoutEstimate | None
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

    def largest_batch(self, estimate: LayoutEstimate) -> int:
        """The largest batch, in samples, without gradient accumulation."""
        return estimate.largest_micro_batch * estimate.layout.replicas

    def to_dict(self) -> dict[str, Any]:
        derived = {"seconds": self.seconds, "cost": self.cost, "utilisation": self.utilisation}
        rows = [
            {**asdict(s), "step_seconds": s.step_seconds, "total_memory": s.memory.total,
             "largest_batch": self.largest_batch(s), "runs": s.layout.runs}
            for s in self.estimates
        ]  # fmt: skip
        chosen = None if self.chosen is None else str(self.chosen.layout)
        values = {k: v for k, v in asdict(self).items() if k != "estimates"}
        return {**values, **derived, "spreads": rows, "chosen": chosen}


def make_plan(recipe: Recipe, cluster: Cluster, strategy: str | None, price: float) -> Plan:
    """Plan the run of `recipe` on `cluster`. Nothing is trained and no weight is allocated.

    Raises:
        InputError: the data is missing, or the strategy is not possible.
    """
    tracer = Tracer(recipe, cluster)
    entry = models.get(recipe.model.name)
    can_shard = functools.cache(lambda width: supports_tensor_parallel(recipe, tracer.task, width))
    can_recompute = "checkpointing" in entry.schema.model_fields and not recipe.model.options["checkpointing"]
    batch = min(recipe.train.batch_size, tracer.samples)
    possible = possible_layouts(cluster, batch, can_shard, can_recompute)
    candidates = [w for w in possible if strategy in (None, w.strategy, w.strategy.split()[0])]
    if strategy is not None and "pp" in strategy:
        candidates = pipeline.pipeline_layouts(strategy, cluster, batch, tracer.depth or 0, can_shard, can_recompute)
        if not candidates:
            raise InputError(f"--strategy {strategy}", pipeline.describe_possible(cluster, batch, tracer.depth or 0))
    if not candidates:
        names = ", ".join(dict.fromkeys(layout.strategy.split()[0] for layout in possible))
        what = f"--strategy {strategy}" if strategy else f"a batch of {batch} over {cluster.count} devices"
        raise InputError(what, f"expected one of {names}" if names else "expected a sample for every device")
    estimates = [tracer.estimate(layout, batch) for layout in candidates]
    chosen, why = choose_layout(estimates)
    total = recipe.train.epochs * -(-tracer.samples // batch)
    model = tracer.model()
    return Plan(
        cluster=cluster,
        precision="bf16" if tracer.low_precision else "fp32",
        parameters=model.parameters,
        trained=model.trained,
        batch=batch,
        unit=tracer.task.unit,
        units=tracer.task.count({k: v.expand(batch, *v.shape[1:]) for k, v in tracer.first_sample.items()}),
        flops=tracer.flops(batch),
        steps=min(total, recipe.train.max_steps or total),
        estimates=estimates,
        chosen=chosen,
        why=why,
        price=price,
    )


def supports_tensor_parallel(recipe: Recipe, task: Task, width: int) -> bool:
    """Whether the recipe's model can shard its matrices over `width` devices."""
    from bigmodel_cli.engine.distributed.tensor_parallel import tensor_plan

    try:
        with torch.device("meta"):
            plan = tensor_plan(recipe, build_architecture(recipe, task.spec), width)
    except InputError:
        return False
    return ROOT not in plan  # with one for the model, only tables are sharded, and no product is


class Tracer:
    """Traces a recipe's training step at different micro-batches, each once, and estimates layouts from the traces.

    Without `calibrate` a CPU is not measured, and times are meaningless.
    """

    def __init__(self, recipe: Recipe, cluster: Cluster, calibrate: bool = True) -> None:
        self.recipe, self.cluster = recipe, cluster
        bundle = load_data(recipe.data, task=recipe.task)
        train, _ = train_and_val(bundle, recipe.data.of_fold(1))
        self.samples = len(train)
        self.task: Task = build_task(recipe, bundle.spec)
        raw = train.gather(torch.arange(1))
        self.first_sample: Batch = raw
        self.sample = self.task.prepare(raw, SampleKey(0, 0, raw["index"]))
        device = cluster.device
        self.on_cpu = device.name == "cpu"
        self.low_precision = recipe.placement.precision == "bf16" or (
            recipe.placement.precision == "auto" and device.bf16 is not None
        )
        self.compiled = recipe.placement.compile is True
        self.ceilings = _ceilings(recipe, cluster) if calibrate else DataSheetCeilings(cluster.device)
        stack = count_stacked_blocks(recipe, self.task)
        self.depth = stack if stack >= MIN_DEEP_BLOCKS else None
        """The number of blocks where shallower models are traced instead of the full one, else None."""
        self.trace = functools.lru_cache(maxsize=32)(self._trace)
        self.model = functools.cache(self._model)
        self.work = functools.cache(self._work)

    def _trace(self, batch: int, sharded: bool, recompute: bool, depth: int | None = None) -> Trace:
        with contextlib.nullcontext() if self.on_cpu else chunks_of_gpu(self.cluster.device.memory):
            return trace_step(
                self.recipe,
                self.task,
                self.sample,
                batch,
                low_precision=self.low_precision,
                master=not (sharded and self.low_precision),
                recompute=recompute,
                small_maps=self.on_cpu,
                depth=depth,
            )

    def measure_full_model(
        self, value: Callable[[Trace], float], sharded: bool = False, recompute: bool = False
    ) -> float:
        """`value` of a step of the full model on MIN_TRACED_SAMPLES samples."""
        if self.depth is None:
            return value(self.trace(MIN_TRACED_SAMPLES, sharded, recompute))
        low, high = (value(self.trace(MIN_TRACED_SAMPLES, sharded, recompute, depth)) for depth in TRACED_DEPTHS)
        return line_through(low, high, TRACED_DEPTHS)(self.depth)

    def _model(self) -> Model:
        blocks = self.trace(MIN_TRACED_SAMPLES, False, False, TRACED_DEPTHS[0] if self.depth else None).block_parameters
        return Model(
            parameters=round(self.measure_full_model(lambda trace: trace.parameters)),
            trained=round(self.measure_full_model(lambda trace: trace.trained)),
            blocks=blocks[:1] * self.depth if self.depth else blocks,
            state=round(self.measure_full_model(_optimizer_state_bytes)),
            averaged=self.recipe.train.ema_decay is not None,
        )

    def flops(self, batch: int) -> float:
        """FLOPs of a step on `batch` samples, in proportion to those on a few."""
        return self.measure_full_model(Trace.flops) / MIN_TRACED_SAMPLES * batch

    def _work(self, batch: int, layout: Layout, blocks: int | None = None) -> Work:
        """Memory and times of a step on `batch` samples on one device of `layout`, with `blocks` blocks (None: all)."""
        depths = TRACED_DEPTHS if self.depth else (None,)
        found = [self._work_of(self.trace(batch, layout.sharded, layout.recompute, d), layout) for d in depths]
        if self.depth is None:
            return found[0]
        return interpolate_work(found[0], found[1], TRACED_DEPTHS, self.depth if blocks is None else blocks)

    def _work_of(self, trace: Trace, layout: Layout) -> Work:
        times = phase_seconds(trace, self.ceilings, layout.width, self.compiled)
        optimizer = times["optimizer"]
        if (
            layout.sharded
        ):  # traced without optimizer: it reads weights, gradients and state, and writes weights and state
            model = self.model()
            moved = model.trained * BYTES_FP32 * 3 + model.state * 2
            optimizer = moved / (self.cluster.device.bandwidth * 0.85)
        return Work(trace.memory(), trace.live(), times["forward"], times["backward"], optimizer)

    def estimate(self, layout: Layout, batch: int) -> LayoutEstimate:
        """The estimate of `layout`: the largest micro-batch that fits, and the cost of a step on `batch` samples."""
        model, usable = self.model(), self.cluster.device.usable
        if not layout.sharded:
            least = (model.parameters * (1 + model.averaged) + model.trained) * BYTES_FP32 + model.state
            if least > usable:  # it fits with no batch: no trace is needed
                weights = model.parameters * (1 + model.averaged) * BYTES_FP32
                return LayoutEstimate(layout, 0, 0, Memory(weights, model.trained * BYTES_FP32, model.state), False, 0)
        samples_per_replica = -(-batch // layout.replicas)
        high = max(
            samples_per_replica if self.on_cpu else min(samples_per_replica, MAX_TRACED_SAMPLES), 2 * MIN_TRACED_SAMPLES
        )
        sizes = (high // 2, high)

        def work(micro: int, blocks: int | None = None) -> Work:
            return interpolate_work(
                self.work(sizes[0], layout, blocks), self.work(sizes[1], layout, blocks), sizes, micro
            )

        def fits(micro: int) -> bool:
            return peak_memory(layout, model, work(micro), 1).total <= usable

        output_bytes_per_sample = (
            self.measure_full_model(lambda trace: sum(trace.block_output_bytes), layout.sharded, layout.recompute)
            / MIN_TRACED_SAMPLES
        )

        def outputs(micro: int) -> float:
            return output_bytes_per_sample * micro

        if layout.stages > 1:
            return pipeline.estimate_pipeline(layout, self.cluster, model, work, batch, outputs)
        return estimate_layout(layout, self.cluster, model, work, batch, outputs, largest_fitting(fits))


def _optimizer_state_bytes(trace: Trace) -> int:
    """Bytes of optimizer state."""
    return sum(lifetime.size for key, lifetime in trace.lifetimes.items() if trace.categories.get(key) == "optimizer")


def _ceilings(recipe: Recipe, cluster: Cluster) -> Ceilings:
    if cluster.device.name != "cpu":
        return DataSheetCeilings(cluster.device)
    from bigmodel_cli.core.recipe import PlacementSection
    from bigmodel_cli.engine.device.placement import choose_placement
    from bigmodel_cli.engine.plan.ceilings import cpu_ceilings

    return cpu_ceilings(choose_placement(PlacementSection(device="cpu", threads=recipe.placement.threads)).threads)
