"""Pictures in files as a split: decoded in parallel."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from bigmodel_cli.core.pictures import decode
from bigmodel_cli.core.types import Batch
from bigmodel_cli.data.picture_list import Item


class PictureFiles:
    """One split of `items`, each a (C,side,side) uint8 square.

    Args:
        items: the pictures and their labels.
        side: what each is resized and cut to.
        channels: 1 or 3.
        split: its name.
        skip_bad: leave undecodable pictures out, instead of stopping at the first.
    """

    def __init__(self, items: Sequence[Item], side: int, channels: int, split: str, skip_bad: bool) -> None:
        self.items, self.side, self.channels, self.split = items, side, channels, split
        self.labels = torch.tensor([item.label for item in items])
        self._pool = ThreadPoolExecutor(cores(), thread_name_prefix="decode")

    def __len__(self) -> int:
        return len(self.items)

    def gather(self, indices: Tensor) -> Batch:
        chosen = [self.items[i] for i in indices.tolist()]
        pictures = torch.stack(list(self._pool.map(self._decode, chosen)))
        return {"image": pictures, "label": self.labels[indices], "index": indices}

    def _decode(self, item: Item) -> Tensor:
        return decode(item.read(), str(item.file), self.channels, self.side)

    def name(self, index: int) -> str:
        return self.items[index].name


def cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
