"""What a frozen backbone says of each sample, computed once: the head then trains on that alone.

Shapes: N samples, B batch, D features.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.recipe import Recipe
from bigmodel_cli.core.registry import augments
from bigmodel_cli.core.sources import SourceWrapper
from bigmodel_cli.core.tasks import Classifies, TaskWrapper
from bigmodel_cli.core.types import Adapted, Batch, SampleKey, Source, Task
from bigmodel_cli.engine.build.model import head_name
from bigmodel_cli.engine.inference.batch_size import elements_per_sample, forward_pass, sample_inputs
from bigmodel_cli.engine.inference.optimize import ForwardFn, Optimized, optimize_by_rule
from bigmodel_cli.engine.training.run import Run

MAX_BYTES = 2**30  # of features held in memory
BIG = 10_000_000  # input elements in all; less is done at once whatever the precision


class Features(SourceWrapper):
    """A split as features: `vectors` (N,D) float32 and `labels` (N,), the model's own, in the order of `source`."""

    keeps_lengths = keeps_order = False

    def __init__(self, source: Source, vectors: Tensor, labels: Tensor) -> None:
        super().__init__(source)
        self.vectors, self.labels = vectors, labels

    def gather(self, indices: Tensor) -> Batch:
        return {"features": self.vectors[indices], "label": self.labels[indices], "index": indices}


class OnFeatures(TaskWrapper):
    """A task whose batches are features: nothing to prepare, and the head is the model."""

    def prepare(self, batch: Batch, key: SampleKey | None = None) -> Batch:
        return {self.task.inputs[0]: batch["features"], "label": batch["label"], "index": batch["index"]}

    def example(self, batch_size: int) -> tuple[Tensor, ...]:
        """One number a sample: how many fit in a pass is no question for a head."""
        return (torch.zeros(batch_size, 1),)


def can_cache_features(
    recipe: Recipe, task: Task, model: nn.Module, adapted: Adapted, samples: int
) -> tuple[bool, str]:
    """Whether the head can train on kept features of `samples` samples, and be the head that it would be anyway.

    Where everything below the head is frozen and it is not possible all the same, the line says why.
    """
    head = head_name(recipe)
    below = {key for key in model.state_dict() if not key.startswith(head + ".")}
    if not below or not below <= adapted.frozen.tensors or adapted.stages or adapted.objective or adapted.solve:
        return False, ""
    if not isinstance(task, Classifies):
        return False, ""
    name, last, why = recipe.augment.name, model.get_submodule(head), ""
    if augments.get(name).meta.get("changes", True):
        why = f"augmentation {name} makes other images each time (--set augment.name=none)"
    elif len(task.inputs) != 1:
        why = "the model takes more than one input"
    elif not isinstance(last, nn.Linear):
        why = "the head is not one linear layer"
    elif 4 * last.in_features * samples > MAX_BYTES:
        why = f"its features would take {4 * last.in_features * samples / 1e9:.1f} GB"
    return not why, f"the backbone runs every epoch: {why}" if why else ""


def with_cached_features(run: Run) -> Run:
    """`run` with features in the place of samples, and the head in the place of the model."""
    with run.timer("features"):
        train, val = features(run)
    head = head_name(run.recipe)
    return replace(
        run,
        batches=replace(run.batches, source=train),
        val=val,
        task=OnFeatures(run.task),
        submodule=head,
        forward=run.model.get_submodule(head),
    )


def features(run: Run) -> tuple[Features, Features]:
    """What goes into the head for every sample of train and of val.

    From a form of the model chosen by rule, so that a resumed run has the same features.

    Raises:
        InputError: the head takes something other than one vector a sample.
    """
    source, forward_fn = run.batches.source, _into_the_head(run)
    work = elements_per_sample(run.task) * len(source)
    allow_low_precision = run.recipe.placement.precision == "auto" and work > BIG
    some = sample_inputs(run.task, source, run.placement, run.recipe.train.eval_batch_size)
    optimized = optimize_by_rule(run.model, forward_fn, run.placement, some, allow_low_precision)
    if optimized.note:
        run.emit({"event": "note", "message": f"features from a quicker backbone: {optimized.note}"})
    return _split(run, optimized, forward_fn, source), _split(run, optimized, forward_fn, run.val)


def _split(run: Run, optimized: Optimized, forward_fn: ForwardFn, source: Source) -> Features:
    vectors: list[Tensor] = []
    labels: list[Tensor] = []
    model, placement = optimized.model, optimized.placement
    with torch.inference_mode(), placement.autocast():
        for batch in forward_pass(model, run.task, source, placement, run.recipe.train.eval_batch_size):
            vectors.append(forward_fn(model, batch)["features"].cpu())
            labels.append(batch["label"].cpu())
    return Features(source, torch.cat(vectors).clone(), torch.cat(labels).clone())


def _into_the_head(run: Run) -> ForwardFn:
    """What a model, of which the head is a part, puts into it."""
    head = head_name(run.recipe)

    def forward(model: nn.Module, batch: Batch) -> Batch:
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

    return forward
