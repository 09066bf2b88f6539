"""One pass over a split: sums on the device, divided once at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from bigmodel_cli.core.types import Batch, Source, Task
from bigmodel_cli.data.batches import gather_ahead, shard_batches
from bigmodel_cli.engine.device.placement import Placement
from bigmodel_cli.engine.distributed.process_group import SINGLE_PROCESS, Group
from bigmodel_cli.engine.inference.batch_size import forward_pass, max_batch_size, sample_inputs
from bigmodel_cli.engine.inference.optimize import optimize_for_inference


def _shared_pass(
    model: nn.Module, task: Task, source: Source, placement: Placement, batch_size: int, group: Group
) -> Iterator[tuple[Batch, bool]]:
    """This rank's batches of `source`, and whether each counts: where none is left for it, the first sample stands in.

    A sharded model needs every rank in every pass.
    """
    model.eval()
    parts = shard_batches(
        len(source),
        min(batch_size, max_batch_size(task, placement)),
        group.data_parallel_rank,
        group.data_parallel_size,
    )
    stand_in = torch.zeros(1, dtype=torch.int64)
    for part, raw in zip(parts, gather_ahead(source, [p if len(p) else stand_in for p in parts]), strict=True):
        yield placement.inputs(task.prepare(placement.batch(raw))), bool(len(part))


def evaluate(
    model: nn.Module,
    task: Task,
    source: Source,
    placement: Placement,
    batch_size: int,
    stop: Callable[[], bool] = lambda: False,
    group: Group = SINGLE_PROCESS,
) -> dict[str, float] | None:
    """Metrics of `model` over the whole of `source`; None where `stop` asked to end before it was through.

    Each rank of `group` takes its share; all of them get the same metrics.
    """
    sums: dict[str, Tensor] = {}
    # What FSDP gathers in its first pass it reuses in training: that must not be an inference tensor.
    with torch.inference_mode() if group.world == 1 else torch.no_grad(), placement.autocast():
        for batch, counts in _shared_pass(model, task, source, placement, batch_size, group):
            if stop():
                return None
            for key, value in task.evaluate(model, batch).items():
                value = value.double() if counts else torch.zeros_like(value, dtype=torch.float64)
                sums[key] = sums[key] + value if key in sums else value
    totals = group.all_reduce_sum([v.item() for v in sums.values()])  # the one host sync of the pass
    return task.summarise(dict(zip(sums, totals, strict=True)))


def collect(
    model: nn.Module,
    task: Task,
    source: Source,
    placement: Placement,
    batch_size: int,
    allow_low_precision: bool = False,
) -> tuple[dict[str, Tensor], str]:
    """The task's outputs for every sample of `source`, on the CPU, first dimension N; and how they were had.

    The quickest agreeing form of the model answers; `free` lets that be int8 or bf16.
    """
    look = sample_inputs(task, source, placement, batch_size)
    quick = optimize_for_inference(model, task.outputs, placement, look, len(source), allow_low_precision)
    parts: list[Batch] = []
    with torch.inference_mode(), quick.placement.autocast():
        for batch in forward_pass(quick.model, task, source, quick.placement, batch_size):
            parts.append({k: v.cpu() for k, v in task.outputs(quick.model, batch).items()})
    return {k: torch.cat([p[k] for p in parts]) for k in parts[0]}, quick.note
