"""Autotuning of a placement: the fastest settings are found by timing real steps.

bf16, compilation and the memory format help with large feature maps and hurt with small ones. The best
number of threads depends on the machine and its load. So a few steps are timed in each setting, one
change at a time from the best so far, and each result is checked against the default's.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_cli.core.recipe import PlacementSection
from bigmodel_cli.core.types import Batch, SampleKey, Task
from bigmodel_cli.engine.device.placement import Placement, is_out_of_memory

MIN_RUN_SECONDS = 5.0  # shorter runs are not tuned: tuning would not pay, and they stay the same on every machine
MAX_SEARCH_SECONDS, SEARCH_FRACTION = 5.0, 0.05  # the search may take so long, or this part of a long run
SHORT_RUN_FRACTION = 0.1  # in a short run it may take this part of it at most
PROBE_SAMPLES, TARGET_STEP_SECONDS = 4, 0.25  # on a CPU a slow batch is timed on a subset of its samples
PROBE_SIDE, MIN_BF16_SPEEDUP = 512, 0.7  # bf16 is skipped where a PROBE_SIDE^2 product is slower than this
COMPILE_SECONDS = 60.0  # a first compilation takes 20 to 60: it is tried only where so much time is left
MIN_SPEEDUP = 1.05  # a smaller gain is noise
LOSS_TOLERANCE, MAX_DEGREES = 0.02, 15.0  # relative difference of the loss, and angle of the gradient, to the default's


@dataclass
class Trial:
    """The result of one setting: the shortest step in seconds, the loss, and the gradient of each parameter."""

    placement: Placement
    seconds: float
    loss: float
    gradient: list[Tensor]


@dataclass
class Benchmark:
    """The workload to time: forward and backward passes of `task` on a raw batch. `model` keeps its state."""

    model: nn.Module
    task: Task
    raw_batch: Batch
    rejected: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def agrees(self, found: Trial, base: Trial) -> bool:
        """Whether `found` has the loss of `base` and the direction of its gradient.

        Some gradients depend on the order of summation, as with BatchNorm over nearly equal values
        in a new ResNet on small maps. Then the angle may be as large as the one that reversing
        the samples causes.
        """
        if not math.isfinite(found.loss) or abs(found.loss - base.loss) > LOSS_TOLERANCE * max(abs(base.loss), 1e-3):
            return False
        angle = _angle_degrees(found.gradient, base.gradient)
        if angle <= MAX_DEGREES:
            return True
        flipped = Benchmark(self.model, self.task, {k: v.flip(0) for k, v in self.raw_batch.items()})
        return angle <= 1.25 * _angle_degrees(flipped.run_trial(base.placement, limit=0).gradient, base.gradient)

    def time_step(self, placement: Placement, forward: nn.Module) -> tuple[float, Tensor]:
        """Seconds of one forward and backward pass, and its mean loss."""
        placement.synchronize()
        clock = time.perf_counter()
        batch = placement.batch(self.raw_batch)
        batch = placement.inputs(self.task.prepare(batch, SampleKey(0, 0, batch["index"])))
        with placement.autocast():
            loss = self.task.loss(forward, batch).total / self.task.count(self.raw_batch)
        loss.backward()
        placement.synchronize()
        return time.perf_counter() - clock, loss.detach()

    def time_cold_step(self, placement: Placement) -> float:
        """Seconds of a step without warm-up: an upper bound, at the lowest cost."""
        placement.set_threads()
        model = placement.model(self.model)
        with _preserving_state(model):
            return self.time_step(placement, placement.compiled(model))[0]

    def run_trial(self, placement: Placement, limit: float, best: float = math.inf) -> Trial:
        """The shortest of up to three steps after a warm-up step. A clearly slower setting is not repeated.

        `limit` is in seconds, and `best` the shortest step of any setting so far.
        """
        placement.set_threads()
        model = placement.model(self.model)
        forward = placement.compiled(model)
        started = time.perf_counter()
        with _preserving_state(model):
            _, loss = self.time_step(placement, forward)
            gradient = [p.grad for p in model.parameters() if p.grad is not None]  # not copied: zero_grad drops them
            least = math.inf
            for _ in range(3):
                model.zero_grad(set_to_none=True)
                least = min(least, self.time_step(placement, forward)[0])
                if least > 1.3 * best or time.perf_counter() - started > limit:
                    break
        return Trial(placement, least, loss.item(), gradient)


def autotune(
    section: PlacementSection,
    placement: Placement,
    model: nn.Module,
    task: Task,
    load_batch: Callable[[], Batch],
    steps: int,
) -> Placement:
    """The fastest placement for `steps` steps on the batch of `load_batch`.

    It is `placement` itself where `section` leaves nothing open or the run is short. Nothing is remembered from
    earlier runs, so that what ran before on this machine cannot change the weights of this run.
    """
    if section.precision != "auto" or section.deterministic or placement.device.type == "mps":
        return placement
    raw_batch = load_batch()
    bench, fraction = Benchmark(model, task, raw_batch), 1.0
    with torch.random.fork_rng(devices=[placement.device] if placement.device.type == "cuda" else []):
        short = f"default on {placement.device.type}: the run is too short to measure"
        try:
            bench, fraction, seconds = _subsample(bench, placement)
            if seconds * steps < MIN_RUN_SECONDS:
                return placement.with_(why=short)
            base = bench.run_trial(placement, limit=min(MAX_SEARCH_SECONDS, SHORT_RUN_FRACTION * seconds * steps) / 4)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return placement.with_(why="not measured: a full batch does not fit in memory")
        expected = base.seconds / fraction * steps
        if expected < MIN_RUN_SECONDS:
            return placement.with_(why=short)
        best = _search(bench, base, section, expected)
    best.placement.set_threads()
    return best.placement.with_(why=_summary(base, best, bench))


def _subsample(bench: Benchmark, placement: Placement) -> tuple[Benchmark, float, float]:
    """`bench` on as many samples as take about TARGET_STEP_SECONDS, their fraction of the batch, and the estimated
    seconds of a step on the full batch."""
    size = len(bench.raw_batch["index"])
    if placement.device.type != "cpu":  # a GPU's time does not grow with the batch, but its first step loads kernels
        bench.time_cold_step(placement)
        return bench, 1.0, bench.time_cold_step(placement)
    if size <= 2 * PROBE_SAMPLES:
        return bench, 1.0, bench.time_cold_step(placement)
    probe = Benchmark(bench.model, bench.task, {k: v[:PROBE_SAMPLES] for k, v in bench.raw_batch.items()})
    probe.time_cold_step(placement)
    seconds = probe.time_cold_step(placement)
    take = min(size, max(PROBE_SAMPLES, int(TARGET_STEP_SECONDS / seconds * PROBE_SAMPLES)))
    if take > size // 2:
        return bench, 1.0, bench.time_cold_step(placement)
    subset = Benchmark(bench.model, bench.task, {k: v[:take] for k, v in bench.raw_batch.items()})
    return subset, take / size, seconds * size / PROBE_SAMPLES


def _bf16_speedup() -> float:
    """The CPU's speed-up of bf16 products over fp32: 0.5x to 8x was seen on processors with bf16 instructions."""
    seconds = {}
    for kind in (torch.float32, torch.bfloat16):
        a = torch.ones(PROBE_SIDE, PROBE_SIDE, dtype=kind)
        seconds[kind] = float("inf")
        for _ in range(4):
            clock = time.perf_counter()
            a @ a
            seconds[kind] = min(seconds[kind], time.perf_counter() - clock)
    return seconds[torch.float32] / seconds[torch.bfloat16]


def _search(bench: Benchmark, base: Trial, section: PlacementSection, expected: float) -> Trial:
    """Try one change at a time from the best so far, the most promising first, as long as time allows."""
    best, end = (
        base,
        time.perf_counter() + max(min(MAX_SEARCH_SECONDS, SHORT_RUN_FRACTION * expected), SEARCH_FRACTION * expected),
    )
    for name, change in _candidates(base.placement, section):
        if name == "bf16" and base.placement.device.type == "cpu" and (gain := _bf16_speedup()) < MIN_BF16_SPEEDUP:
            bench.rejected.append(f"bf16 products {gain:.2g}x")
            continue
        seconds_left = end - time.perf_counter()
        if seconds_left < (COMPILE_SECONDS if change.get("compile") else 3 * best.seconds):
            bench.skipped.append(name)
            continue
        try:
            found = bench.run_trial(best.placement.with_(**change), seconds_left / 2, best.seconds)
        except Exception as error:  # a missing kernel or compiler raises any class of error
            bench.rejected.append(f"{name} failed: {type(error).__name__}")
            bench.model.zero_grad(set_to_none=True)
            continue
        gain = best.seconds / found.seconds
        if gain < MIN_SPEEDUP:
            bench.rejected.append(f"{name} {gain:.2g}x")
        elif not bench.agrees(found, base):
            bench.rejected.append(f"{name} disagrees with {base.placement.precision}")
        else:
            best = found
    best.placement.model(bench.model)
    bench.model.zero_grad(set_to_none=True)
    return best


def _candidates(base: Placement, section: PlacementSection) -> Iterator[tuple[str, dict[str, Any]]]:
    if base.precision == "fp32":
        yield "bf16", {"precision": "bf16"}
    else:
        yield "fp32", {"precision": "fp32"}
    if (
        section.threads is None
        and base.threads > 1
        and base.device.type == "cpu"
        and "OMP_NUM_THREADS" not in os.environ
    ):
        half = base.threads // 2
        yield f"{half} thread{'s' * (half > 1)}", {"threads": half}
    if section.channels_last == "auto":
        yield "contiguous", {"channels_last": False}
    if section.compile == "auto":
        yield "compiled", {"compile": True}


def _angle_degrees(a: list[Tensor], b: list[Tensor]) -> float:
    """The angle between two gradients, each a list of tensors of any memory format; 0 where one of them is zero."""
    lengths = math.sqrt(_dot(a, a) * _dot(b, b))
    return math.degrees(math.acos(max(-1.0, min(_dot(a, b) / lengths, 1.0)))) if lengths > 0 else 0.0


def _dot(a: list[Tensor], b: list[Tensor]) -> float:
    parts = [(x.float() * y.float()).sum() for x, y in zip(a, b, strict=True)]
    return torch.stack(parts).double().sum().item() if parts else 0.0


@contextlib.contextmanager
def _preserving_state(model: nn.Module) -> Iterator[None]:
    """Restore what a forward pass changes (BatchNorm's statistics), and drop the gradients."""
    saved = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(saved[name])
        model.zero_grad(set_to_none=True)


def _summary(base: Trial, best: Trial, bench: Benchmark) -> str:
    gain = base.seconds / best.seconds
    won = f"measured {gain:.2g}x as fast as {base.placement.precision}" if gain >= MIN_SPEEDUP else "measured: fastest"
    skipped = [f"no time to try: {', '.join(bench.skipped)}"] if bench.skipped else []
    return "; ".join([won, *bench.rejected, *skipped])
