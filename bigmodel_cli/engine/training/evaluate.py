"""Evaluate a model on a split. Sums stay on the device and are divided once, at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from bigmodel_cli.core.answering import FitsToVal
from bigmodel_cli.core.types import Batch, Source, Task
from bigmodel_cli.data.batches import gather_ahead, longest_first, shard_batches
from bigmodel_cli.engine.device.placement import Placement
from bigmodel_cli.engine.distributed.process_group import SINGLE_PROCESS, Group
from bigmodel_cli.engine.inference.batch_size import forward_pass, max_batch_size, sample_inputs
from bigmodel_cli.engine.inference.kept_outputs import KeptOutputs
from bigmodel_cli.engine.inference.optimize import optimize_for_inference


def _rank_batches(
    model: nn.Module, task: Task, source: Source, placement: Placement, batch_size: int, group: Group
) -> Iterator[tuple[Batch, bool]]:
    """Yield this rank's batches of `source`, and whether each one counts.

    A sharded model needs every rank in every forward pass. A rank that has run out of samples
    gets the first sample as a placeholder, which does not count.
    """
    model.eval()
    size, order = min(batch_size, max_batch_size(task, placement)), longest_first(source)
    parts = shard_batches(len(source), size, group.data_parallel_rank, group.data_parallel_size)
    parts = parts if order is None else [order[part] for part in parts]
    placeholder = torch.zeros(1, dtype=torch.int64)
    for part, raw in zip(parts, gather_ahead(source, [p if len(p) else placeholder for p in parts]), strict=True):
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
    """Return the metrics of `model` on `source`, or None if `stop` ended the evaluation early.

    Each rank of `group` evaluates its part of the samples. All ranks get the same metrics.
    """
    if isinstance(task, FitsToVal):
        outputs = split_outputs(model, task, source, placement, batch_size, stop, group)
        return None if outputs is None else task.score(outputs)
    sums: dict[str, Tensor] = {}
    # FSDP reuses the tensors of its first pass in training, where inference tensors are not allowed.
    with torch.inference_mode() if group.world == 1 else torch.no_grad(), placement.autocast():
        for batch, counts in _rank_batches(model, task, source, placement, batch_size, group):
            if stop():
                return None
            for key, value in task.evaluate(model, batch).items():
                value = value.double() if counts else torch.zeros_like(value, dtype=torch.float64)
                sums[key] = sums[key] + value if key in sums else value
    totals = group.all_reduce_sum([v.item() for v in sums.values()])  # the only host synchronization
    return task.summarise(dict(zip(sums, totals, strict=True)))


def split_outputs(
    model: nn.Module,
    task: Task,
    source: Source,
    placement: Placement,
    batch_size: int,
    stop: Callable[[], bool] = lambda: False,
    group: Group = SINGLE_PROCESS,
) -> Batch | None:
    """Return the task's outputs for all samples of `source` on the CPU, in any order; None if `stop` ended it early.

    All ranks of `group` get the outputs of all.
    """
    kept = KeptOutputs(len(source))
    with torch.inference_mode() if group.world == 1 else torch.no_grad(), placement.autocast():
        for batch, counts in _rank_batches(model, task, source, placement, batch_size, group):
            if stop():
                return None
            out = task.outputs(model, batch)
            if counts:
                kept.add(out)
    of_ranks = [part for part in group.gather(kept.outputs()) if part]
    seen = torch.cat([part["index"] for part in of_ranks])
    _, first = _first_of_each(seen)  # tensor-parallel ranks evaluate the same samples
    return {k: torch.cat([part[k] for part in of_ranks])[first] for k in of_ranks[0]}


def _first_of_each(values: Tensor) -> tuple[Tensor, Tensor]:
    """The sorted distinct `values` (N,), and the place of one of each."""
    ordered, order = values.sort(stable=True)
    keep = torch.cat([torch.ones(1, dtype=torch.bool), ordered[1:] != ordered[:-1]])
    return ordered[keep], order[keep]


def collect(
    model: nn.Module,
    task: Task,
    source: Source,
    placement: Placement,
    batch_size: int,
    allow_low_precision: bool = False,
) -> tuple[dict[str, Tensor], str]:
    """Return the task's outputs for all N samples of `source`, on the CPU, and a note on how the model was optimized.

    Uses the fastest optimized model whose outputs agree with the original. `allow_low_precision`
    also permits int8 and bf16.
    """
    example = sample_inputs(task, source, placement, batch_size)
    optimized = optimize_for_inference(model, task.outputs, placement, example, len(source), allow_low_precision)
    order = longest_first(source)
    kept = KeptOutputs(len(source), order)
    with torch.inference_mode(), optimized.placement.autocast():
        for batch in forward_pass(optimized.model, task, source, optimized.placement, batch_size, order):
            kept.add(task.outputs(optimized.model, batch))
    return kept.outputs(), optimized.note
