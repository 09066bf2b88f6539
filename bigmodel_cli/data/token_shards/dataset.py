"""Token shards as a data set: the files are memory-mapped, so a run reads only what it trains on."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import data
from bigmodel_cli.core.special_tokens import END
from bigmodel_cli.core.tokenizers.tokens import BPETokenizer, tokenizer
from bigmodel_cli.core.types import DataBundle, TextSpec
from bigmodel_cli.data.text.tokenizer_choice import as_text_spec, window_length
from bigmodel_cli.data.text.windows import Context, Separate, Windows
from bigmodel_cli.data.token_shards.files import Index, is_shards, read_index


@dataclass(frozen=True)
class MemoryMappedTokens:
    """The ids from `first` to `last` of the concatenated shards; `size` is the vocabulary size."""

    index: Index
    size: int
    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first

    @functools.cached_property
    def parts(self) -> tuple[np.ndarray, list[np.memmap]]:
        """The start of each shard, and its memory-mapped file."""
        counts = [count for _, count, _ in self.index.shards]
        return np.cumsum([0, *counts]), [np.memmap(path, self.index.kind, "r") for path, _, _ in self.index.shards]

    def __getitem__(self, places: Tensor) -> Tensor:
        """The ids at `places` (B,T) int64, as int32.

        Raises:
            InputError: an id is not in the tokenizer's vocabulary, so the file is damaged.
        """
        wanted = places.numpy() + self.first
        starts, files = self.parts
        found = np.empty(wanted.shape, np.int64)
        which = np.searchsorted(starts, wanted, "right") - 1
        for shard in np.unique(which):
            here = which == shard
            found[here] = files[shard][wanted[here] - starts[shard]]
        if found.max() >= self.size:
            path = self.index.shards[int(which.flat[int(found.argmax())])][0]
            raise InputError(f"{path}: token {found.max()}", f"expected less than {self.size}", "make the shards again")
        return torch.from_numpy(found.astype(np.int32))


@data.register(task="language_modeling", reads=lambda given: 10 * is_shards(given.path), next="train gpt-nano")
def token_shards(
    root: Path,
    like: TextSpec | None = None,
    *,
    path: str,
    context: Context | None = None,
    val_share: Annotated[float, Field(gt=0, lt=0.9, description="fraction at the end used as val")] = 0.1,
    separate: Separate = False,
) -> DataBundle:
    """Token shards written by `bigmodel data tokenize`; the last part is the validation split."""
    like = as_text_spec(like)
    index = read_index(Path(path).expanduser(), context or window_length(like))
    known = tokenizer(index.spec)
    cut = _split_point(index, val_share)
    ranges = {"train": (0, cut), "val": (cut, index.tokens)}
    if min(b - a for a, b in ranges.values()) < 2:
        raise InputError(f"{path}: {index.tokens} tokens", "expected at least 2 for train and 2 for val")

    mean, notes = None, []
    if isinstance(known, BPETokenizer) and not known.names_every_byte:
        mean = index.text_bytes / index.tokens
        notes = [f"the tokens' names do not tell their bytes: each counts {mean:.3g}, the mean, in bits per byte"]

    @functools.cache
    def load(split: str) -> Windows:
        end, (first, last) = known.special[END] if separate else None, ranges[split]
        sizes = None if mean is None else torch.tensor(mean).expand(last - first)
        tokens = MemoryMappedTokens(index, known.size, first, last)
        return Windows(tokens, index.spec.context, split, end, sizes)

    return DataBundle(index.spec, {split: functools.partial(load, split) for split in ranges}, index.fingerprint, notes)


def _split_point(index: Index, val_share: float) -> int:
    """The first token of the val split: after the nearest end of a document, unless that is too far away."""
    target = int(index.tokens * (1 - val_share))
    ends = index.document_ends()
    if len(ends) < 2:
        return target
    tolerance = val_share * index.tokens / 2
    i = int(np.searchsorted(ends[:-1], target))
    neighbours = [int(ends[k]) for k in (i - 1, i) if 0 <= k < len(ends) - 1]
    best = min(neighbours, key=lambda end: abs(end - target))
    return best if abs(best - target) <= tolerance else target
