"""How many samples go through a model at once, and the batches of a forward pass."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from bigmodel_cli.core.types import Batch, Source, Task
from bigmodel_cli.data.batches import in_order
from bigmodel_cli.engine.device.placement import Placement


def forward_pass(
    model: nn.Module, task: Task, source: Source, placement: Placement, batch_size: int
) -> Iterator[Batch]:
    """The model-ready batches of `source`, in order, with the model in eval mode."""
    model.eval()
    for raw in in_order(source, min(batch_size, max_batch_size(task, placement))):
        yield placement.inputs(task.prepare(placement.batch(raw)))


def elements_per_sample(task: Task) -> int:
    """Numbers that one sample puts into the model."""
    return sum(x.numel() for x in task.example(1))


def max_batch_size(task: Task, placement: Placement) -> int:
    """Samples in a forward pass beyond which nothing gets faster, and memory is only taken.

    Past the caches of a CPU: with ResNet-18 on 2 cores, 16 to 32 images of 224 x 224 were the fastest.
    """
    return max(1, (1 << 22 if placement.device.type == "cpu" else 1 << 28) // elements_per_sample(task))


def sample_inputs(task: Task, source: Source, placement: Placement, batch_size: int) -> Batch:
    """Some model-ready samples from all over `source`, which may be in order: what a quicker form is chosen on."""
    few = min(len(source), batch_size, max(1, max_batch_size(task, placement) // 2))
    raw = source.gather(torch.arange(few) * len(source) // few)
    return placement.inputs(task.prepare(placement.batch(raw)))
