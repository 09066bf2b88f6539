"""The batch size of forward passes, and their batches."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bigmodel_cli.core.types import Batch, Source, Task
from bigmodel_cli.data.batches import in_order
from bigmodel_cli.engine.device.placement import Placement

TOKEN = 128  # numbers that a token counts as, for it becomes a vector


def forward_pass(
    model: nn.Module, task: Task, source: Source, placement: Placement, batch_size: int, order: Tensor | None = None
) -> Iterator[Batch]:
    """Put `model` in eval mode, and yield the prepared batches of `source` in its order, or in `order` (N,)."""
    model.eval()
    for raw in in_order(source, min(batch_size, max_batch_size(task, placement)), order):
        yield placement.inputs(task.prepare(placement.batch(raw)))


def elements_per_sample(task: Task) -> int:
    """The number of elements in one sample's inputs."""
    return sum(x.numel() for x in task.example(1))


def max_batch_size(task: Task, placement: Placement) -> int:
    """The largest useful batch: more samples take more memory, and are no faster.

    On a CPU its caches set the limit: with ResNet-18 on 2 cores, 16 to 32 images of 224 x 224 were the fastest, and
    with a BERT of 384 numbers a token 16 texts of 26 tokens were as fast as 512.
    """
    most = 1 << 22 if placement.device.type == "cpu" else 1 << 28
    size = sum(x.numel() * (1 if x.is_floating_point() else TOKEN) for x in task.example(1))
    return max(1, most // size)


def sample_inputs(task: Task, source: Source, placement: Placement, batch_size: int) -> Batch:
    """Prepared samples evenly spaced over `source`, which may be sorted: the data to optimize a model on."""
    count = min(len(source), batch_size, max(1, max_batch_size(task, placement) // 2))
    raw = source.gather(torch.arange(count) * len(source) // count)
    return placement.inputs(task.prepare(placement.batch(raw)))
