"""Measures a compressed model: its size on disk, its speed relative to the source, and its accuracy on val."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bigmodel_cli.compress.work import Data, Work
from bigmodel_cli.core.files.scratch import scratch_folder
from bigmodel_cli.core.recipe import PlacementSection
from bigmodel_cli.core.types import Task
from bigmodel_cli.engine.build.load import TrainedModel, load_trained
from bigmodel_cli.engine.device.placement import Placement, choose_placement
from bigmodel_cli.engine.device.process import configure_process
from bigmodel_cli.engine.training.evaluate import evaluate
from bigmodel_cli.export.exported_model import exported_model
from bigmodel_cli.export.folder import is_export, model_files, read_folder
from bigmodel_cli.export.latency import measure_latency
from bigmodel_cli.metrics.reading import is_share

SECONDS = 0.5
"""How long to time a model and its source, alternating, at each batch size."""


@dataclass(frozen=True)
class Point:
    """The measurements of one artifact.

    Args:
        steps: the methods applied, with their options; empty for the source.
        bytes: size of the fp32 weights for the source, of the files on disk otherwise.
        latency: p50 in milliseconds by batch size, on the CPU.
        beside: the same for the source, measured alternately.
        metric: the validation metric that selects the best checkpoint.
        value: its value.
        drop: the loss of `value` against the source, in percentage points for a fraction, else in the metric's unit.
        runtime: the export format whose runtime ran it; None if torch did.
    """

    name: str
    path: str
    steps: Sequence[Mapping[str, Any]]
    bytes: int
    latency: Mapping[str, float]
    beside: Mapping[str, float]
    metric: str
    value: float
    drop: float
    threads: int
    runtime: str | None = None

    @property
    def quantized(self) -> bool:
        """Whether it was compressed to its final form, and so needs fp32 in the same runtime beside it."""
        return any(step.get("final") for step in self.steps)

    @property
    def speedup(self) -> float:
        """The speed for one sample relative to the source."""
        return self.beside["1"] / self.latency["1"]

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "speedup": self.speedup}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Point:
        drop = values["drop"] if values["drop"] is not None else math.inf  # JSON has no infinity
        return cls(**{k: v for k, v in values.items() if k != "speedup"} | {"drop": drop})

    def dominates(self, other: Point) -> bool:
        """Whether this is no worse in size, speed and accuracy, and better in at least one."""
        ours = (self.bytes, -self.speedup, self.drop)
        theirs = (other.bytes, -other.speedup, other.drop)
        return all(a <= b for a, b in zip(ours, theirs, strict=True)) and ours != theirs


@dataclass(frozen=True)
class Judge:
    """Measures artifacts against one source. The source runs as in ``predict`` on a CPU: eager, in fp32."""

    source: TrainedModel
    task: Task
    data: Data
    placement: Placement
    model: nn.Module
    inputs: tuple[Tensor, ...]
    value: float

    @classmethod
    def of(cls, source: TrainedModel, data: Data) -> Judge:
        placement = choose_placement(PlacementSection(device="cpu", precision="fp32"))
        configure_process(placement)
        model = placement.model(copy.deepcopy(source.model))  # the compression methods need the original unchanged
        task = data.task(source)
        batch = placement.inputs(task.prepare(next(data.spread(data.val, 32))))
        inputs = tuple(batch[name] for name in task.inputs)
        return cls(source, task, data, placement, model, inputs, _evaluate(model, task, data, placement))

    def point_of_source(self) -> Point:
        size = sum(t.numel() * t.element_size() for t in self.source.model.state_dict().values())
        point = self._point("source", self.source.path, [], size, self.model, self.value)
        return replace(point, beside=point.latency)

    def point(self, name: str, path: Path) -> Point:
        """Measure the artifact at `path`, a checkpoint or an export folder."""
        if is_export(path):
            folder = read_folder(path)
            model: nn.Module
            model, task = exported_model(folder, self.task)
            size = sum(file.stat().st_size for file in model_files(path))
            steps, runtime = folder.about.get("compressed", []), folder.about["format"]
        else:
            trained = load_trained(path)
            model, size, task = self.placement.model(trained.model), path.stat().st_size, self.data.task(trained)
            steps, runtime = trained.meta.get("compressed", []), None
        value = _evaluate(model, task, self.data, self.placement)
        return replace(self._point(name, path, steps, size, model, value), runtime=runtime)

    def _point(self, name: str, path: Path, steps: Any, size: int, model: nn.Module, value: float) -> Point:
        models = {"ours": (model, self.inputs), "source": (self.model, self.inputs)}
        found = measure_latency(models, SECONDS)
        latency, beside = ({b: f["p50_ms"] for b, f in found[way].items()} for way in ("ours", "source"))
        metric, mode = self.task.best
        worse = (self.value - value) * (1 if mode == "max" else -1)
        # A model that returns NaN is infinitely worse.
        drop = math.inf if math.isnan(worse) else worse * (100 if is_share(metric) else 1)
        return Point(name, str(path), steps, size, latency, beside, metric, value, drop, found["threads"])


def fp32_of(point: Point, points: Sequence[Point]) -> Point | None:
    """The row of `points` that ran the same network in the same runtime in fp32, if `point` is quantized."""
    before = [step for step in point.steps if not step.get("final")]
    same = (p for p in points if p.runtime == point.runtime and not p.quantized and list(p.steps) == before)
    return next(same, None) if point.runtime is not None and point.quantized else None


def fp32_beside(work: Work, judge: Judge, point: Point) -> Point | None:
    """The network of `work` in fp32 in the runtime of `point`, measured and thrown away; None for a checkpoint."""
    from bigmodel_cli.export.proof import prove

    if point.runtime is None or not point.quantized:
        return None
    with scratch_folder() as place:
        out = place / "fp32"
        prove(work.subject(), point.runtime, out, seconds=0)
        return judge.point(f"{point.runtime}-fp32", out)


def remarks(source: Point, points: Sequence[Point]) -> list[str]:
    """What a reader of the sizes and speedups should know: what grew, and what int8 itself has gained."""
    lines = []
    for point in points:
        if point.bytes > source.bytes:
            lines.append(
                f"{point.name} is larger than the checkpoint's weights: "
                f"{point.bytes / 1e6:.2f} MB, not {source.bytes / 1e6:.2f} MB"
            )
        same = fp32_of(point, points)
        if same is not None:
            gains = [(point.beside[b] / point.latency[b]) / (same.beside[b] / same.latency[b]) for b in ("1", "32")]
            words = " and ".join(
                f"{gain:.2g}x as fast at batch {batch}" + " (slower)" * (gain < 1)
                for gain, batch in zip(gains, ("1", "32"), strict=True)
            )
            smaller = same.bytes / point.bytes
            size = f"{smaller:.1f}x smaller" if smaller >= 1 else f"{1 / smaller:.1f}x larger"
            lines.append(f"{point.name} against {same.name}, fp32 in the same runtime: {words}, {size}")
    return lines


def _evaluate(model: nn.Module, task: Task, data: Data, placement: Placement) -> float:
    found = evaluate(model, task, data.val, placement, data.recipe.train.eval_batch_size)
    assert found is not None
    return found[task.best[0]]
