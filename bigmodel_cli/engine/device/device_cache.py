"""Samples near the GPU: all in its memory where they fit, else in pinned memory that it copies from by itself."""

from __future__ import annotations

import torch
from torch import Tensor

from bigmodel_cli.core.sources import OrderedSource, SourceWrapper
from bigmodel_cli.core.types import Batch, Source
from bigmodel_cli.engine.device.placement import Placement

SHARE = 0.4  # of the free memory: the model and its activations need the rest
CHUNK = 4096  # samples gathered at once on the way there


class Resident(SourceWrapper):
    """A split whose tensors, `held`, are all on the device: a batch is one indexing there, and nothing is copied."""

    keeps_lengths = False  # they are padded to one

    def __init__(self, source: Source, held: Batch) -> None:
        super().__init__(source)
        self.held = held

    def gather(self, indices: Tensor) -> Batch:
        return {k: v[indices.to(v.device, non_blocking=True)] for k, v in self.held.items()}


class Pinned(SourceWrapper):
    """A split whose batches lie in pinned memory: the copy to the device then goes on beside its work."""

    def gather(self, indices: Tensor) -> Batch:
        return {k: v.pin_memory() for k, v in self.source.gather(indices).items()}


def cache_on_device(source: Source, placement: Placement) -> Source:
    """`source` as the device of `placement` gets at it fastest; on a CPU it is near already."""
    free = placement.memory_free()
    if not free or isinstance(source, OrderedSource):  # it is streamed: more than is wanted would be fetched
        return source
    one = source.gather(torch.arange(min(len(source), 2)))
    needed = len(source) * sum(v[:1].numel() * v.element_size() for v in one.values())
    same = all(v.shape[1:] == one[k].shape[1:] for k, v in source.gather(torch.tensor([len(source) - 1])).items())
    held = resident(source, placement.device) if same and needed < SHARE * free else None
    return held or Pinned(source)


def resident(source: Source, device: torch.device) -> Resident | None:
    """Every sample of `source` on `device`; None where they are of several lengths."""
    chunks = [source.gather(part) for part in torch.arange(len(source)).split(CHUNK)]
    if len({tuple(v.shape[1:] for v in chunk.values()) for chunk in chunks}) > 1:
        return None
    return Resident(source, {k: torch.cat([c[k].to(device) for c in chunks]) for k in chunks[0]})
