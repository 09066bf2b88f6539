"""What the model that a run starts from says of each sample: computed once, before the first step, and kept.

A method asks for it (``Adapted.once``), as preference optimization does for its reference. It lies beside each
sample from then on, and in the run's checkpoints, so that a resumed run needs neither the start nor a second pass.
Shapes: N samples, B batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from bigmodel_cli.core.errors import InputError
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


def add_reference_outputs(run: Run) -> bool:
    """Put what the start says beside each sample of train and val. False where a signal came first.

    Raises:
        InputError: a resumed run's checkpoint has it for other data.
    """
    if run.adapted.once is None:
        return True
    if not run.said:
        with run.timer("features"):
            found = {"train": _said(run, run.batches.source), "val": _said(run, run.val)}
        if not all(found.values()):
            return False
        run.said = {split: said for split, said in found.items() if said}
    train, val = _beside(run.batches.source, run.said, "train"), _beside(run.val, run.said, "val")
    run.batches, run.val = replace(run.batches, source=train), val
    return True


def _said(run: Run, source: Source) -> Batch | None:
    assert run.adapted.once is not None
    parts: list[Batch] = []
    size = run.recipe.train.eval_batch_size
    # What the passes of a model leave that is cut over ranks is used in training: no inference tensors then.
    with torch.no_grad() if run.parallel.shards_tensors else torch.inference_mode(), run.placement.autocast():
        for batch in forward_pass(run.model, run.task, source, run.placement, size):
            if run.stop():
                return None
            parts.append({k: v.float().cpu() for k, v in run.adapted.once(run.model, batch).items()})
    return {k: torch.cat([part[k] for part in parts]).clone() for k in parts[0]}


def _beside(source: Source, said: Mapping[str, Batch], split: str) -> WithReferences:
    if split not in said or any(len(v) != len(source) for v in said[split].values()):
        raise InputError("--resume: what the start said is not of this data", "expected the data of the run")
    return WithReferences(source, said[split])
