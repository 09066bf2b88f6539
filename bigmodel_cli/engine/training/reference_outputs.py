"""Reference outputs: the initial model's outputs for each sample, computed once before the first step.

A fine-tuning method requests them with ``Adapted.once``; preference optimization needs them for its reference
model. They are added to each batch and stored in checkpoints, so a resumed run does not need the initial model.

Shapes: N samples, B batch.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from bigmodel_cli.core.sources import SourceWrapper
from bigmodel_cli.core.types import Batch, Source
from bigmodel_cli.data.batches import longest_first
from bigmodel_cli.engine.inference.batch_size import forward_pass
from bigmodel_cli.engine.inference.kept_outputs import KeptOutputs
from bigmodel_cli.engine.training.run import Run


class WithReferences(SourceWrapper):
    """`source` with the tensors `references` (N,...) added to each batch."""

    def __init__(self, source: Source, references: Batch) -> None:
        super().__init__(source)
        self.references = references

    def gather(self, indices: Tensor) -> Batch:
        return {**self.source.gather(indices), **{k: v[indices] for k, v in self.references.items()}}


def with_reference_outputs(run: Run) -> Run:
    """Add reference outputs to the train and validation batches. A resumed run has them in its checkpoint."""
    outputs = run.reference_outputs
    if not outputs:
        with run.timer("features"):
            outputs = {"train": _compute(run, run.batches.source), "val": _compute(run, run.val)}
    train, val = WithReferences(run.batches.source, outputs["train"]), WithReferences(run.val, outputs["val"])
    return replace(run, batches=replace(run.batches, source=train), val=val, reference_outputs=outputs)


def _compute(run: Run, source: Source) -> Batch:
    """Compute the current model's outputs for each sample of `source`: (N,...) fp32, on the CPU."""
    assert run.adapted.once is not None
    order, size = longest_first(source), run.recipe.train.eval_batch_size
    kept = KeptOutputs(len(source), order)
    # A sharded model reuses tensors of this pass in training, where inference tensors are not allowed.
    with torch.no_grad() if run.parallel.shards_tensors else torch.inference_mode(), run.placement.autocast():
        for batch in forward_pass(run.model, run.task, source, run.placement, size, order):
            kept.add({k: v.float() for k, v in run.adapted.once(run.model, batch).items()})
    return kept.outputs()
