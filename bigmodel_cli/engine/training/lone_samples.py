"""Check before training that BatchNorm never gets a single value per channel, which has no variance."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.engine.training.run import Run


def smallest_micro_batch(run: Run) -> int:
    """The fewest samples of a forward pass on one rank, in any step of an epoch."""
    size = run.batches.size(run.batches.steps_per_epoch - 1)
    pieces = run.parallel.num_micro_batches(run.recipe.train.accumulate, size)
    return size // run.batches.shards // max(pieces, 1)


def check_lone_samples(run: Run) -> None:
    """Refuse micro-batches of one sample if a trained BatchNorm layer would normalize one value per channel.

    Such a layer sees maps of 1x1, or vectors. One sample runs through the model in eval mode, so that nothing changes.

    Raises:
        InputError: a BatchNorm layer would fail in training.
    """
    if run.parallel.group.world > 1 or smallest_micro_batch(run) > 1:
        return
    held = set(run.frozen.modules)
    layers = {name: m for name, m in run.model.named_modules() if isinstance(m, _BatchNorm) and m not in held}
    if not layers:
        return
    shapes: dict[str, torch.Size] = {}

    def record(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        shapes[name] = inputs[0].shape

    handles = [layer.register_forward_pre_hook(partial(record, name)) for name, layer in layers.items()]
    training = run.model.training
    try:
        with torch.no_grad(), run.placement.autocast():
            batch = run.task.prepare(run.placement.batch(run.batches.indexed_source.gather(torch.tensor([0]))))
            run.task.outputs(run.model.eval(), run.placement.inputs(batch))
    finally:
        run.model.train(training)
        for handle in handles:
            handle.remove()
    lone = [name for name, shape in shapes.items() if shape.numel() == shape[1]]
    if lone:
        what = f"a step of one sample: BatchNorm {lone[0]} would get one value per channel, which has no variance"
        raise InputError(what, "expected two samples or more per micro-batch", "--batch-size 2, or larger images")


def is_lone_sample(error: Exception) -> bool:
    """Whether BatchNorm failed on a single value per channel."""
    return isinstance(error, ValueError) and str(error).startswith("Expected more than 1 value per channel")
