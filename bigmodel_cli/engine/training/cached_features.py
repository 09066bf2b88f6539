"""What a frozen backbone says of each sample, computed once: the head then trains on that alone.

Shapes: N samples, B batch, D features.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.recipe import Recipe
from bigmodel_cli.core.registry import augments
from bigmodel_cli.core.types import Adapted, Batch, SampleKey, Source
from bigmodel_cli.engine.build.model import head_name
from bigmodel_cli.engine.inference.batch_size import elements_per_sample, forward_pass, sample_inputs
from bigmodel_cli.engine.inference.optimize import ForwardFn, Optimized, optimize_by_rule
from bigmodel_cli.engine.training.run import Run

MOST = 2**30  # bytes of features held in memory
BIG = 10_000_000  # input elements in all; less is done at once whatever the precision


@dataclass(frozen=True)
class Features:
    """A split as features: `vectors` (N,D) float32 and `labels` (N,), in the order of `source`."""

    source: Source
    vectors: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def gather(self, indices: Tensor) -> Batch:
        return {"features": self.vectors[indices], "label": self.labels[indices], "index": indices}

    def name(self, index: int) -> str:
        return self.source.name(index)


class OnFeatures:
    """A task whose batches are features: nothing to prepare, and the head is the model. All else is the task's own."""

    def __init__(self, task: Any) -> None:
        self.task = task

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def prepare(self, batch: Batch, key: SampleKey | None = None) -> Batch:
        return {self.task.inputs[0]: batch["features"], "label": batch["label"], "index": batch["index"]}

    def example(self, batch_size: int) -> tuple[Tensor, ...]:
        """One number a sample: how many fit in a pass is no question for a head."""
        return (torch.zeros(batch_size, 1),)


def can_cache_features(recipe: Recipe, task: Any, model: nn.Module, adapted: Adapted, samples: int) -> tuple[bool, str]:
    """Whether the head can train on kept features of `samples` samples, and be the head that it would be anyway.

    Where everything below the head is frozen and it is not possible all the same, the line says why.
    """
    head = head_name(recipe)
    below = {key for key in model.state_dict() if not key.startswith(head + ".")}
    if not below or not below <= adapted.frozen.tensors or adapted.stages or adapted.objective or adapted.solve:
        return False, ""
    name, last, why = recipe.augment.name, model.get_submodule(head), ""
    if augments.get(name).meta.get("changes", True):
        why = f"augmentation {name} makes other images each time (--set augment.name=none)"
    elif len(getattr(task, "inputs", ())) != 1:
        why = "the model takes more than one input"
    elif not isinstance(last, nn.Linear):
        why = "the head is not one linear layer"
    elif 4 * last.in_features * samples > MOST:
        why = f"its features would take {4 * last.in_features * samples / 1e9:.1f} GB"
    return not why, f"the backbone runs every epoch: {why}" if why else ""


def cache_features(run: Run) -> bool:
    """Put features in the place of samples, and the head in the place of the model. False where a signal came first."""
    if not run.caches_features:
        return True
    with run.timer("features"):
        both = features(run)
    if both is None:
        return False
    train, val = both
    run.batches = replace(run.batches, source=train)
    run.val, run.task, run.part = val, OnFeatures(run.task), head_name(run.recipe)
    run.forward = run.model.get_submodule(run.part)
    return True


def features(run: Run) -> tuple[Features, Features] | None:
    """What goes into the head for every sample of train and of val; None where a signal came.

    From a form of the model chosen by rule, so that a resumed run has the same features.

    Raises:
        InputError: the head takes something other than one vector a sample.
    """
    source, says = run.batches.source, _vectors(run)
    free = run.recipe.placement.precision == "auto" and elements_per_sample(run.task) * len(source) > BIG
    look = sample_inputs(run.task, source, run.placement, run.recipe.train.eval_batch_size)
    quick = optimize_by_rule(run.model, says, run.placement, look, free)
    if quick.note:
        run.emit({"event": "note", "message": f"features from a quicker backbone: {quick.note}"})
    train = _split(run, quick, says, source)
    val = None if train is None else _split(run, quick, says, run.val)
    return None if train is None or val is None else (train, val)


def _split(run: Run, quick: Optimized, says: ForwardFn, source: Source) -> Features | None:
    vectors: list[Tensor] = []
    labels: list[Tensor] = []
    with torch.inference_mode(), quick.placement.autocast():
        for batch in forward_pass(quick.model, run.task, source, quick.placement, run.recipe.train.eval_batch_size):
            if run.stop():
                return None
            vectors.append(says(quick.model, batch)["features"].cpu())
            labels.append(batch["label"].cpu())
    return Features(source, torch.cat(vectors).clone(), torch.cat(labels).clone())


def _vectors(run: Run) -> ForwardFn:
    """What a model, of which the head is a part, puts into it."""
    head = head_name(run.recipe)

    def says(model: nn.Module, batch: Batch) -> Batch:
        seen: list[Tensor] = []
        handle = model.get_submodule(head).register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        try:
            run.task.outputs(model, batch)
        finally:
            handle.remove()
        if seen[0].dim() != 2:
            what = f"the head takes {tuple(seen[0].shape)}"
            raise InputError(what, "expected one vector a sample", "--freeze-backbone")
        return {"features": seen[0].float()}

    return says
