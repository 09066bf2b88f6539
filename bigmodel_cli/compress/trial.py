"""Measures a compressed model: its size on disk, its speed relative to the source, and its accuracy on val."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bigmodel_cli.compress.work import Data
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
            steps = folder.about.get("compressed", [])
        else:
            trained = load_trained(path)
            model, size, task = self.placement.model(trained.model), path.stat().st_size, self.data.task(trained)
            steps = trained.meta.get("compressed", [])
        value = _evaluate(model, task, self.data, self.placement)
        return self._point(name, path, steps, size, model, value)

    def _point(self, name: str, path: Path, steps: Any, size: int, model: nn.Module, value: float) -> Point:
        models = {"ours": (model, self.inputs), "source": (self.model, self.inputs)}
        found = measure_latency(models, SECONDS)
        latency, beside = ({b: f["p50_ms"] for b, f in found[way].items()} for way in ("ours", "source"))
        metric, mode = self.task.best
        worse = (self.value - value) * (1 if mode == "max" else -1)
        # A model that returns NaN is infinitely worse.
        drop = math.inf if math.isnan(worse) else worse * (100 if is_share(metric) else 1)
        return Point(name, str(path), steps, size, latency, beside, metric, value, drop, found["threads"])


def _evaluate(model: nn.Module, task: Task, data: Data, placement: Placement) -> float:
    found = evaluate(model, task, data.val, placement, data.recipe.train.eval_batch_size)
    assert found is not None
    return found[task.best[0]]
