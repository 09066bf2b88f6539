"""Measured placement: what is fastest here is found by real steps, not by rule.

bf16, compilation and the memory format help large maps and hurt small ones; how many
threads pay depends on the machine and on its load. So a few real steps are timed in
each setting, one change at a time from the best so far, each checked against fp32.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import bigmodel_cli
from bigmodel_cli.core import atomic_files
from bigmodel_cli.core.errors import MachineError
from bigmodel_cli.core.recipe import PlacementSection, cache_root
from bigmodel_cli.core.types import Batch, SampleKey, Task
from bigmodel_cli.engine.device.hardware import cpu_flags
from bigmodel_cli.engine.device.placement import CHOICES, Placement, device_name, is_out_of_memory

SHORTEST = 10.0  # seconds: below this a run is over before a choice pays, and stays the same on every machine
MOST, SHARE = 5.0, 0.05  # seconds, or of the expected run if that is more: what measuring may take
SHORT_SHARE = 0.1  # of the expected run, where that is less than MOST
FEW, PART = 4, 0.25  # samples, then seconds: on a CPU a part of a batch tells as much as all of a slow one
SIDE, SLOWER = 512, 0.7  # bf16 is not tried where a product of SIDE x SIDE shows it this much slower than fp32
COMPILE_SECONDS = 60.0  # a first compilation takes 20 to 60; tried only where SHARE of the run is more
WORTH = 1.05  # a smaller gain is noise
LOSS_TOLERANCE, MOST_DEGREES = 0.02, 15.0  # against the default: of the loss, and of the whole gradient's direction
KEPT = 500  # entries in the cache


@dataclass
class Trial:
    """One setting: seconds a step (the least seen), its loss, and its gradient, a tensor a parameter."""

    placement: Placement
    seconds: float
    loss: float
    gradient: list[Tensor]


@dataclass
class Bench:
    """The work to time: forward and backward of `task` on the raw batch, with nothing of `model` changed after."""

    model: nn.Module
    task: Task
    raw: Batch
    losers: list[str] = field(default_factory=list)
    untried: list[str] = field(default_factory=list)

    def agrees(self, found: Trial, base: Trial) -> bool:
        """Whether `found` has the loss of `base` and points where it does, as far as that is a fact of the model.

        Some gradients turn with the order of summation (BatchNorm over nearly equal values,
        as in a new ResNet on small maps): then the direction under the samples in reverse is
        what can be asked for.
        """
        if not math.isfinite(found.loss) or abs(found.loss - base.loss) > LOSS_TOLERANCE * max(abs(base.loss), 1e-3):
            return False
        turned = _degrees(found.gradient, base.gradient)
        if turned <= MOST_DEGREES:
            return True
        reversed_ = Bench(self.model, self.task, {k: v.flip(0) for k, v in self.raw.items()})
        return turned <= 1.25 * _degrees(reversed_.trial(base.placement, limit=0).gradient, base.gradient)

    def once(self, placement: Placement, forward: nn.Module) -> tuple[float, Tensor]:
        """Seconds of one step, and its mean loss."""
        placement.wait()
        clock = time.perf_counter()
        batch = placement.batch(self.raw)
        batch = placement.inputs(self.task.prepare(batch, SampleKey(0, 0, batch["index"])))
        with placement.autocast():
            loss = self.task.loss(forward, batch).total / self.task.count(self.raw)
        loss.backward()
        placement.wait()
        return time.perf_counter() - clock, loss.detach()

    def first(self, placement: Placement) -> float:
        """Seconds of a step that nothing warmed up: an upper bound, had at the least cost."""
        placement.use()
        model = placement.model(self.model)
        with _untouched(model):
            return self.once(placement, placement.compiled(model))[0]

    def trial(self, placement: Placement, limit: float, best: float = math.inf) -> Trial:
        """The least of up to three timed steps, after one that warms up; a clearly slower one is not repeated."""
        placement.use()
        model = placement.model(self.model)
        forward = placement.compiled(model)
        started = time.perf_counter()
        with _untouched(model):
            _, loss = self.once(placement, forward)
            gradient = [p.grad for p in model.parameters() if p.grad is not None]  # taken over, not copied
            least = math.inf
            for _ in range(3):
                model.zero_grad(set_to_none=True)
                least = min(least, self.once(placement, forward)[0])
                if least > 1.3 * best or time.perf_counter() - started > limit:
                    break
        return Trial(placement, least, loss.item(), gradient)


def measured(
    section: PlacementSection,
    placement: Placement,
    model: nn.Module,
    task: Task,
    gather: Callable[[], Batch],
    steps: int,
    about: Any,
) -> Placement:
    """The fastest placement for `steps` steps on what `gather` gives, or `placement` where none is open or it is short.

    `about` names the work (model, options, method); with the shapes, the machine and
    the versions it is the key under which the choice is kept.
    """
    if section.precision != "auto" or section.deterministic or placement.device.type == "mps":
        return placement
    raw = gather()
    key = _key(placement, raw, about)
    kept = _recall(key)
    if kept is not None:
        return _chosen(placement, kept)
    bench, share = Bench(model, task, raw), 1.0
    with torch.random.fork_rng(devices=[placement.device] if placement.device.type == "cuda" else []):
        short = f"default on {placement.device.type}: too short a run to measure"
        try:
            bench, share, seconds = _in_part(bench, placement)
            if seconds * steps < SHORTEST:
                return placement.with_(why=short)
            base = bench.trial(placement, limit=min(MOST, SHORT_SHARE * seconds * steps) / 4)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return placement.with_(why="not measured: a whole batch does not fit in memory")
        expected = base.seconds / share * steps
        if expected < SHORTEST:
            return placement.with_(why=short)
        best = _search(bench, base, section, expected)
    best.placement.use()
    line = _line(base, best, bench)
    _remember(key, {**best.placement.choices(), "why": line})
    return best.placement.with_(why=line)


def _in_part(bench: Bench, placement: Placement) -> tuple[Bench, float, float]:
    """`bench` on as much of its batch as takes about PART seconds; its share; and about the seconds of a whole step."""
    size = len(bench.raw["index"])
    if placement.device.type != "cpu" or size <= 2 * FEW:  # a GPU's time does not grow with the batch
        return bench, 1.0, bench.first(placement)
    few = Bench(bench.model, bench.task, {k: v[:FEW] for k, v in bench.raw.items()})
    few.first(placement)
    seconds = few.first(placement)
    take = min(size, max(FEW, int(PART / seconds * FEW)))
    if take > size // 2:
        return bench, 1.0, bench.first(placement)
    part = Bench(bench.model, bench.task, {k: v[:take] for k, v in bench.raw.items()})
    return part, take / size, seconds * size / FEW


def _bf16_gain() -> float:
    """How much faster than in fp32 the CPU multiplies in bf16: with an instruction for it, 0.5x to 8x was seen."""
    seconds = {}
    for kind in (torch.float32, torch.bfloat16):
        a = torch.ones(SIDE, SIDE, dtype=kind)
        seconds[kind] = float("inf")
        for _ in range(4):
            clock = time.perf_counter()
            a @ a
            seconds[kind] = min(seconds[kind], time.perf_counter() - clock)
    return seconds[torch.float32] / seconds[torch.bfloat16]


def _search(bench: Bench, base: Trial, section: PlacementSection, expected: float) -> Trial:
    """One change at a time from the best so far; the likeliest gain first, as time allows."""
    best, end = base, time.perf_counter() + max(min(MOST, SHORT_SHARE * expected), SHARE * expected)
    for name, change in _changes(base.placement, section):
        if name == "bf16" and base.placement.device.type == "cpu" and (gain := _bf16_gain()) < SLOWER:
            bench.losers.append(f"bf16 products {gain:.2g}x")
            continue
        room = end - time.perf_counter()
        if room < (COMPILE_SECONDS if change.get("compile") else 3 * best.seconds):
            bench.untried.append(name)
            continue
        try:
            found = bench.trial(best.placement.with_(**change), room / 2, best.seconds)
        except Exception as error:  # a kernel or compiler that this machine lacks fails in its own way
            bench.losers.append(f"{name} failed: {type(error).__name__}")
            bench.model.zero_grad(set_to_none=True)
            continue
        gain = best.seconds / found.seconds
        if gain < WORTH:
            bench.losers.append(f"{name} {gain:.2g}x")
        elif not bench.agrees(found, base):
            bench.losers.append(f"{name} disagrees with {base.placement.precision}")
        else:
            best = found
    best.placement.model(bench.model)
    bench.model.zero_grad(set_to_none=True)
    return best


def _changes(base: Placement, section: PlacementSection) -> Iterator[tuple[str, dict[str, Any]]]:
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


def _degrees(a: list[Tensor], b: list[Tensor]) -> float:
    """The angle between two vectors, each in parts of whatever memory format; 0 where one of them is zero."""
    lengths = math.sqrt(_product(a, a) * _product(b, b))
    return math.degrees(math.acos(max(-1.0, min(_product(a, b) / lengths, 1.0)))) if lengths > 0 else 0.0


def _product(a: list[Tensor], b: list[Tensor]) -> float:
    parts = [(x.float() * y.float()).sum() for x, y in zip(a, b, strict=True)]
    return torch.stack(parts).double().sum().item() if parts else 0.0


@contextlib.contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Put back what a forward pass changes (BatchNorm's statistics), and leave no gradient."""
    kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(kept[name])
        model.zero_grad(set_to_none=True)


def _line(base: Trial, best: Trial, bench: Bench) -> str:
    gain = base.seconds / best.seconds
    won = f"measured {gain:.2g}x as fast as {base.placement.precision}" if gain >= WORTH else "measured: fastest"
    untried = [f"not tried for want of time: {', '.join(bench.untried)}"] if bench.untried else []
    return "; ".join([won, *bench.losers, *untried])


def _chosen(placement: Placement, kept: dict[str, Any]) -> Placement:
    placement = placement.with_(**{k: kept[k] for k in CHOICES}, why=f"{kept['why']}; as measured before")
    placement.use()
    return placement


def _key(placement: Placement, raw: Batch, about: Any) -> str:
    shapes = {k: [str(v.dtype), *v.shape] for k, v in raw.items()}
    machine = [device_name(placement.device), cpu_flags()[0] or platform.machine(), os.cpu_count(), placement.choices()]
    facts = [machine, str(torch.__version__), bigmodel_cli.__version__, shapes, about]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def _entries() -> dict[str, Any]:
    try:
        found = json.loads((cache_root() / "placement.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or damaged: measuring again costs seconds
        return {}
    return found if isinstance(found, dict) else {}


def _recall(key: str) -> dict[str, Any] | None:
    kept = _entries().get(key)
    kinds = {"precision": str, "channels_last": bool, "compile": bool, "threads": int, "small_maps": bool, "why": str}
    if not isinstance(kept, dict) or any(type(kept.get(k)) is not kind for k, kind in kinds.items()):
        return None
    return kept if kept["precision"] in ("fp32", "bf16") and 0 < kept["threads"] <= 4096 else None


def _remember(key: str, choice: dict[str, Any]) -> None:
    entries = {**_entries(), key: choice}
    path = cache_root() / "placement.json"
    text = json.dumps(dict(list(entries.items())[-KEPT:]), indent=1)
    with contextlib.suppress(OSError, MachineError):  # a cache that cannot be written is only slower
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_files.replace(path, lambda draft: draft.write_text(text, encoding="utf-8"), lambda: len(text))
