"""What the model that a run starts from says of each sample: computed once, before the first step, and kept.

A method asks for it (``Adapted.once``), as preference optimization does for its reference. It lies beside each
sample from then on, and in the run's checkpoints, so that a resumed run needs neither the start nor a second pass.
Shapes: N samples, B batch.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from bigmodel_cli.core.sources import SourceWrapper
from bigmodel_cli.core.types import Batch, Source
from bigmodel_cli.engine.inference.batch_size import forward_pass
from bigmodel_cli.engine.training.run import Run


class WithReferences(SourceWrapper):
    """`source` with `references`, tensors (N,...), beside its own."""

    def __init__(self, source: Source, references: Batch) -> None:
        super().__init__(source)
        self.references = references

    def gather(self, indices: Tensor) -> Batch:
        return {**self.source.gather(indices), **{k: v[indices] for k, v in self.references.items()}}


def with_reference_outputs(run: Run) -> Run:
    """`run` with what the start answers beside each sample of train and val; a resumed run has the answers already."""
    outputs = run.reference_outputs
    if not outputs:
        with run.timer("features"):
            outputs = {"train": _answers(run, run.batches.source), "val": _answers(run, run.val)}
    train, val = WithReferences(run.batches.source, outputs["train"]), WithReferences(run.val, outputs["val"])
    return replace(run, batches=replace(run.batches, source=train), val=val, reference_outputs=outputs)


def _answers(run: Run, source: Source) -> Batch:
    """What the model as it stands answers for each sample of `source`: (N,...) fp32, on the CPU."""
    assert run.adapted.once is not None
    parts: list[Batch] = []
    size = run.recipe.train.eval_batch_size
    # What the passes of a model leave that is cut over ranks is used in training: no inference tensors then.
    with torch.no_grad() if run.parallel.shards_tensors else torch.inference_mode(), run.placement.autocast():
        for batch in forward_pass(run.model, run.task, source, run.placement, size):
            parts.append({k: v.float().cpu() for k, v in run.adapted.once(run.model, batch).items()})
    return {k: torch.cat([part[k] for part in parts]).clone() for k in parts[0]}
