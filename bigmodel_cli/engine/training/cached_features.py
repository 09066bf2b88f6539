"""Cache the features of a frozen backbone, so that the head trains on them alone.

Shapes: N samples, B batch, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from bigmodel_cli.core.answering import Answers
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.networks import FixedBackbone
from bigmodel_cli.core.recipe import Recipe
from bigmodel_cli.core.registry import augments
from bigmodel_cli.core.sources import SourceWrapper
from bigmodel_cli.core.tasks import TaskWrapper
from bigmodel_cli.core.types import Adapted, Batch, SampleKey, Source, Task
from bigmodel_cli.data.batches import longest_first
from bigmodel_cli.data.thread_map import SlowProgress
from bigmodel_cli.engine.build.model import head_name
from bigmodel_cli.engine.inference.batch_size import elements_per_sample, forward_pass, sample_inputs
from bigmodel_cli.engine.inference.kept_outputs import KeptOutputs
from bigmodel_cli.engine.inference.optimize import ForwardFn, Optimized, optimize_by_rule
from bigmodel_cli.engine.training.run import Run

MAX_BYTES = 2**30  # largest feature cache in memory
BIG = 10_000_000  # input elements; smaller data sets are fast at any precision


class Features(SourceWrapper):
    """A split as features: `vectors` (N,D) float32 and `labels` (N,) or (N,K) as the loss takes them, in order."""

    keeps_lengths = keeps_order = False

    def __init__(self, source: Source, vectors: Tensor, labels: Tensor) -> None:
        super().__init__(source)
        self.vectors, self.labels = vectors, labels

    def gather(self, indices: Tensor) -> Batch:
        return {"features": self.vectors[indices], "label": self.labels[indices], "index": indices}


class OnFeatures(TaskWrapper):
    """A task on cached features. The model is the head, and batches need no preprocessing."""

    def prepare(self, batch: Batch, key: SampleKey | None = None) -> Batch:
        return {self.task.inputs[0]: batch["features"], "label": batch["label"], "index": batch["index"]}

    def example(self, batch_size: int) -> tuple[Tensor, ...]:
        """A dummy input of one number per sample: memory never limits the batch size of a head."""
        return (torch.zeros(batch_size, 1),)


def can_cache_features(
    recipe: Recipe, task: Task, model: nn.Module, adapted: Adapted, samples: int
) -> tuple[bool, str]:
    """Return whether the head can train on cached features of `samples` samples with the same result.

    If the whole backbone is frozen, or fixed by the model, but caching is impossible, the second value is the reason.
    """
    head = head_name(recipe)
    backbone = {key for key in model.state_dict() if not key.startswith(head + ".")}
    fixed = isinstance(model, FixedBackbone) and model.fixed_backbone
    if not fixed and not (backbone and backbone <= adapted.frozen.tensors):
        return False, ""
    if adapted.stages or adapted.objective or adapted.solve:
        return False, ""
    if not isinstance(task, Answers):
        return False, ""
    name, layer, reason = recipe.augment.name, model.get_submodule(head), ""
    if augments.get(name).meta.get("changes", True):
        reason = f"augmentation {name} changes the images every epoch (--set augment.name=none)"
    elif len(task.inputs) != 1:
        reason = "the model takes more than one input"
    elif not isinstance(layer, nn.Linear):
        reason = "the head is not one linear layer"
    elif 4 * layer.in_features * samples > MAX_BYTES:
        reason = f"its features would take {4 * layer.in_features * samples / 1e9:.1f} GB"
    else:
        reason = no_vector_reason(model, task, head)
    return not reason, f"the backbone runs every epoch: {reason}" if reason else ""


def with_cached_features(run: Run) -> Run:
    """Replace the samples of `run` by cached features, and its model by the head."""
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
    """Compute the head's input for every sample of the train and validation splits.

    The optimized model is chosen by a fixed rule, not by timing, so that a resumed run gets the same features.

    Raises:
        InputError: the head's input is not one vector per sample.
    """
    source, forward_fn = run.batches.source, feature_fn(run.task, head_name(run.recipe))
    work = elements_per_sample(run.task) * len(source)
    # What the range of a low precision is set by is other samples, which private training cannot account for.
    allow_low_precision = run.recipe.placement.precision == "auto" and work > BIG and run.recipe.privacy.epsilon is None
    example = sample_inputs(run.task, source, run.placement, run.recipe.train.eval_batch_size)
    optimized = optimize_by_rule(run.model, forward_fn, run.placement, example, allow_low_precision)
    if optimized.note:
        run.emit({"event": "note", "message": f"features from an optimized backbone: {optimized.note}"})
    return _compute(run, optimized, forward_fn, source), _compute(run, optimized, forward_fn, run.val)


def _compute(run: Run, optimized: Optimized, forward_fn: ForwardFn, source: Source) -> Features:
    order, progress = longest_first(source), SlowProgress(f"features of {len(source):,} samples", len(source))
    kept, size = KeptOutputs(len(source), order), run.recipe.train.eval_batch_size
    model, placement = optimized.model, optimized.placement
    with torch.inference_mode(), placement.autocast():
        for batch in forward_pass(model, run.task, source, placement, size, order):
            kept.add({**forward_fn(model, batch), "label": batch["label"]})
            progress.step(len(batch["label"]))
    progress.finish()
    found = kept.outputs()
    return Features(source, found["features"], found["label"])


def feature_fn(task: Task, head: str) -> ForwardFn:
    """Return a forward function that gives the input of the layer `head` as ``features`` (B,D)."""

    def forward(model: nn.Module, batch: Batch) -> Batch:
        given = _input_of(model.get_submodule(head), lambda: task.outputs(model, batch))
        if given is None:  # a traced form may have the head's operations without the head
            raise RuntimeError(f"{head} was not called")
        if given.dim() != 2:
            problem = f"the head takes {tuple(given.shape)}"
            raise InputError(problem, "expected one vector per sample", "--freeze-backbone")
        return {"features": given.float()}

    return forward


def no_vector_reason(model: nn.Module, task: Task, head: str) -> str:
    """A line on what the layer `head` takes if that is not one vector per sample, as of a decoder; else "".

    Found by a pass of the task's example, in eval mode.
    """
    device, training = next(model.parameters()).device, model.training
    example = [x.to(device) for x in task.example(1)]
    try:
        with torch.no_grad():
            given = _input_of(model.get_submodule(head), lambda: model.eval()(*example))
    finally:
        model.train(training)
    found = None if given is None else tuple(given.shape[1:])
    return "" if found is not None and len(found) == 1 else f"the head takes {found} per sample, not one vector"


def _input_of(layer: nn.Module, forward: Callable[[], object]) -> Tensor | None:
    """What `layer` is given in the pass `forward`; None if it is not called."""
    captured: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda module, inputs: captured.append(inputs[0]))
    try:
        forward()
    finally:
        handle.remove()
    return captured[0] if captured else None
