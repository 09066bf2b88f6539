"""One pass over a split: sums on the device, divided once at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from bigmodel_cli.core.types import Batch, Source, Task
from bigmodel_cli.engine.batches import in_order
from bigmodel_cli.engine.placement import Placement


def forward_pass(
    model: nn.Module, task: Task, source: Source, placement: Placement, batch_size: int
) -> Iterator[Batch]:
    """The model-ready batches of `source`, in order, with the model in eval mode."""
    model.eval()
    for raw in in_order(source, batch_size):
        yield placement.inputs(task.prepare(placement.batch(raw)))


def evaluate(
    model: nn.Module,
    task: Task,
    source: Source,
    placement: Placement,
    batch_size: int,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Metrics of `model` over the whole of `source`; None where `stop` asked to end before it was through."""
    sums: dict[str, Tensor] = {}
    with torch.inference_mode(), placement.autocast():
        for batch in forward_pass(model, task, source, placement, batch_size):
            if stop():
                return None
            for key, value in task.evaluate(model, batch).items():
                sums[key] = sums[key] + value if key in sums else value.double()
    return task.summarise({k: v.item() for k, v in sums.items()})  # the one host sync of the pass


def collect(model: nn.Module, task: Task, source: Source, placement: Placement, batch_size: int) -> dict[str, Tensor]:
    """The task's outputs for every sample of `source`, on the CPU, first dimension N."""
    parts: list[Batch] = []
    with torch.inference_mode(), placement.autocast():
        for batch in forward_pass(model, task, source, placement, batch_size):
            parts.append({k: v.cpu() for k, v in task.outputs(model, batch).items()})
    return {k: torch.cat([p[k] for p in parts]) for k in parts[0]}
