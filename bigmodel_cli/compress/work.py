"""The common part of all compression methods: their input, and how they load, write and train.

A method is a function of a :class:`Work` that writes the artifact at ``work.out``: a checkpoint (``gives="checkpoint"``
in its registration) or an export folder (``gives="export"``). Its keyword-only parameters are its options. Calibration
and training use the train split, choices use the validation split, and nothing here reads the test split.

Shapes: B batch.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_cli.core.errors import InputError, InterruptedRun, MachineError
from bigmodel_cli.core.extras import install_line
from bigmodel_cli.core.files.event_log import read_state
from bigmodel_cli.core.recipe import Recipe
from bigmodel_cli.core.registry import Entry, compressions
from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.core.types import Batch, DataBundle, Source, Spec
from bigmodel_cli.engine.build.data import load_data, train_and_val
from bigmodel_cli.engine.build.load import TrainedModel, load_trained
from bigmodel_cli.engine.checkpoint import checkpoint
from bigmodel_cli.engine.session.run_folder import RunFolder
from bigmodel_cli.engine.session.session import train
from bigmodel_cli.engine.training.weights_only import save_weights
from bigmodel_cli.export.subject import Subject

Events = Callable[[], AbstractContextManager[Callable[[dict[str, Any]], None]]]
"""Opens a progress display, which receives a training run's events."""


@dataclass
class Data:
    """The train and val splits recorded in a checkpoint, loaded once for a whole search.

    `spec` is the checkpoint's, so that text uses its tokenizer.
    """

    recipe: Recipe
    spec: Spec

    @cached_property
    def bundle(self) -> DataBundle:
        return load_data(self.recipe.data, self.spec)

    @cached_property
    def splits(self) -> tuple[Source, Source]:
        return train_and_val(self.bundle, self.recipe.data)

    def task(self, trained: TrainedModel) -> Any:
        """The task of `trained` for this data, whose classes may be in another order."""
        return trained.task.for_data(self.bundle.spec)

    @property
    def train(self) -> Source:
        return self.splits[0]

    @property
    def val(self) -> Source:
        return self.splits[1]

    def spread(self, source: Source, count: int) -> Iterator[Batch]:
        """`count` samples spread evenly over `source`, in batches of 64, since data is often sorted by class."""
        chosen = torch.linspace(0, len(source) - 1, min(count, len(source))).round().long()
        return (source.gather(part) for part in chosen.split(64))


@dataclass(frozen=True)
class Work:
    """One compression of one checkpoint.

    Args:
        trained: the checkpoint, its model on the CPU in fp32 and eval mode.
        recipe: the checkpoint's recipe, overridden by the given flags.
        data: its splits.
        out: where the artifact goes: a checkpoint file, or an export folder.
        events: displays training.
    """

    trained: TrainedModel
    recipe: Recipe
    data: Data
    out: Path
    events: Events

    @property
    def model(self) -> nn.Module:
        return self.trained.model

    def example(self) -> tuple[Tensor, ...]:
        """Two training samples as the model's inputs, since tracers treat a batch of one as a constant."""
        return next(self.calibration(2))

    def calibration(self, count: int) -> Iterator[tuple[Tensor, ...]]:
        """The model's inputs for `count` training samples, each batch (B, ...)."""
        task = self.data.task(self.trained)
        for raw in self.data.spread(self.data.train, count):
            batch = task.prepare(raw)
            yield tuple(batch[name].contiguous() for name in task.inputs)

    def subject(self, how: Mapping[str, Any] | None = None, samples: int = 256) -> Subject:
        """The subject of an export, with `samples` validation inputs for the proof; `how` goes into export.json."""
        data, about = self.data, self.trained.source_metadata()
        about["data"] = {"fingerprint": data.bundle.fingerprint, "validation samples": len(data.val)}
        if how:
            about["compressed"] = [*about.get("compressed", []), {**how, "final": True}]
        return Subject(self.model, data.task(self.trained), list(data.spread(data.val, samples)), about)

    def write(self, tensors: Mapping[str, Tensor], how: Mapping[str, Any], recipe: Recipe | None = None) -> None:
        """Write a checkpoint of `tensors` to `out` with the source's metadata, without optimizer state."""
        write_checkpoint(self.out, self.trained, tensors, how, recipe)

    def train(self, start: Path, changes: Mapping[str, Mapping[str, Any]], folder: Path) -> Path:
        """Fine-tune the checkpoint `start` in `folder` with `changes` to the recipe, and return the best checkpoint.

        An unfinished run is resumed, and a finished one is reused.

        Raises:
            InterruptedRun: a signal arrived; everything is saved.
            DivergedError: training diverged.
        """
        stored = checkpoint.load(start)["meta"]["recipe"]
        kept = {k: stored[k] for k in ("model", "loss", "augment")}
        about = {**kept, "data": self.recipe.to_dict()["data"], "start": {"checkpoint": str(start.resolve())}}
        return self.run(resolve([Layer(str(start), about), Layer("compress", changes)]).recipe, folder)

    def run(self, recipe: Recipe, folder: Path) -> Path:
        """Train `recipe` in `folder`, as :meth:`train` does."""
        done = folder / "best.pt"
        if done.exists() and read_state(folder) == "done":
            return done
        resume = (folder / "last.pt").exists()
        try:
            with self.events() as emit:
                return train(recipe, RunFolder(folder, resume=resume, overwrite=not resume), emit).best
        except InterruptedRun as error:
            error.hint = "run the same bigmodel compress again to resume"
            raise


def write_checkpoint(
    path: Path,
    trained: TrainedModel,
    tensors: Mapping[str, Tensor],
    how: Mapping[str, Any],
    recipe: Recipe | None = None,
) -> None:
    """Write an ordinary checkpoint of weights only; `how` it was made goes into ``meta.compressed``."""
    meta = dict(trained.meta)
    if recipe is not None:
        meta["recipe"] = recipe.to_dict()
    meta["compressed"] = [*meta.get("compressed", []), dict(how)]
    save_weights(path, tensors, meta, trained.progress)


def strip_checkpoint(path: Path, out: Path, how: Mapping[str, Any]) -> None:
    """Write the checkpoint at `path` to `out` without optimizer state and EMA, which only resuming needs."""
    trained = load_trained(path)
    write_checkpoint(out, trained, trained.model.state_dict(), how)


def select_method(name: str, trained: TrainedModel) -> Entry:
    """The method `name`, or the best installed method of the family `name`.

    Raises:
        InputError: it is unknown or not for this kind of model, or the checkpoint is already quantized.
        MachineError: it needs a package that is not installed.
    """
    members = family(name)
    entry = next((m for m in members if not missing(m)), members[0]) if members else compressions.get(name)
    kind = trained.task.spec.kind
    if kind not in entry.meta["kinds"]:
        what = f"--method {name} is for {' and '.join(entry.meta['kinds'])}s"
        others = [n for n in compressions.names() if kind in compressions.get(n).meta["kinds"]]
        raise InputError(what, f"{trained.recipe.model.name} takes {kind}", "--method " + " or ".join(others[:4]))
    done = [step["method"] for step in trained.meta.get("compressed", []) if step.get("final")]
    if done:
        what = f"{trained.path}: already compressed by {done[0]}"
        raise InputError(what, "expected the original checkpoint", "rounding errors would add up")
    absent = missing(entry)
    if absent:
        what = f"--method {name} needs {', '.join(absent)}"
        raise MachineError(what, "not installed", install_line(entry.meta["extra"]))
    return entry


def family(name: str) -> list[Entry]:
    """The methods registered with ``family=name``, best first by their measured `rank`."""
    entries = [compressions.get(n) for n in compressions.names()]
    return sorted((e for e in entries if e.meta.get("family") == name), key=lambda e: e.meta["rank"])


def missing(entry: Entry) -> list[str]:
    """The required packages of a method that are not installed."""
    return [package for package in entry.meta.get("needs", ()) if importlib.util.find_spec(package) is None]
