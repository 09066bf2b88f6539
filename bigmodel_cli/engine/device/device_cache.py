"""Samples cached for the GPU: in its memory where the split fits, else in pinned memory for asynchronous copies."""

from __future__ import annotations

import torch
from torch import Tensor

from bigmodel_cli.core.sources import FileSource, OrderedSource, SourceWrapper, VariableLengthSource
from bigmodel_cli.core.types import Batch, Source
from bigmodel_cli.engine.device.placement import Placement

MAX_MEMORY_FRACTION = 0.4  # of the free memory: the rest is for the model and its activations
CHUNK_SAMPLES = 4096  # gathered at once while loading


class Resident(SourceWrapper):
    """A split whose tensors are all on the device: a batch is one index operation, without a copy from the host."""

    keeps_lengths = False  # they are padded to one

    def __init__(self, source: Source, held: Batch) -> None:
        super().__init__(source)
        self.held = held
        if isinstance(source, FileSource):
            self.file = source.file

    def gather(self, indices: Tensor) -> Batch:
        return {k: v[indices.to(v.device, non_blocking=True)] for k, v in self.held.items()}


class Pinned(SourceWrapper):
    """A split whose batches are in pinned memory: copies to the device overlap with its computation."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        if isinstance(source, FileSource):
            self.file = source.file

    def gather(self, indices: Tensor) -> Batch:
        return {k: v.pin_memory() for k, v in self.source.gather(indices).items()}


def on_host(source: Source) -> Source:
    """`source` as it was before :func:`cache_on_device`."""
    return source.source if isinstance(source, (Resident, Pinned)) else source


def cache_on_device(source: Source, placement: Placement) -> Source:
    """`source` in the form that the device of `placement` reads fastest; unchanged on a CPU."""
    free = placement.memory_free()
    # A streamed source has an order: probing it here would fetch whole shards.
    if not free or isinstance(source, OrderedSource):
        return source
    first = source.gather(torch.arange(min(len(source), 2)))
    last = source.gather(torch.tensor([len(source) - 1]))
    needed = len(source) * sum(v[:1].numel() * v.element_size() for v in first.values())
    one_length = not isinstance(source, VariableLengthSource)  # else short batches would be padded to the longest
    same_shapes = one_length and all(v.shape[1:] == first[k].shape[1:] for k, v in last.items())
    fits = same_shapes and needed < MAX_MEMORY_FRACTION * free
    cached = load_resident(source, placement.device) if fits else None
    return cached or Pinned(source)


def load_resident(source: Source, device: torch.device) -> Resident | None:
    """All samples of `source` on `device`; None where their lengths differ."""
    chunks = [source.gather(indices) for indices in torch.arange(len(source)).split(CHUNK_SAMPLES)]
    if len({tuple(v.shape[1:] for v in chunk.values()) for chunk in chunks}) > 1:
        return None
    return Resident(source, {k: torch.cat([c[k].to(device) for c in chunks]) for k in chunks[0]})
