"""Images in files as a split: decoded in parallel, once where the cache has room for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.images import decode
from bigmodel_cli.core.types import Batch
from bigmodel_cli.data.image import decode_cache
from bigmodel_cli.data.image.listing import Item
from bigmodel_cli.data.thread_map import decoders, for_each

MAX_BAD = 0.05  # the share of a split that may be left out: beyond it something else is wrong


class ImageFiles:
    """One split of images, each a (C,side,side) uint8 square.

    Args:
        items: the images and their labels.
        side: what each is resized and cut to.
        channels: 1 or 3.
        split: its name.
        skip_bad: leave undecodable images out, instead of stopping at the first.
        cache: keep the decoded squares on disk.

    Raises:
        InputError: an image cannot be decoded; with `skip_bad`, more than MAX_BAD of them.
    """

    def __init__(
        self, items: Sequence[Item], side: int, channels: int, split: str, skip_bad: bool, cache: Literal["auto", "off"]
    ) -> None:
        self.items, self.side, self.channels, self.split = items, side, channels, split
        self.notes: list[str] = []
        self._stored: decode_cache.Stored | None = None
        good = torch.ones(len(items), dtype=torch.bool)
        if cache == "auto":
            decode_cache.settle(max(item.stamp[1] for item in items))
            made_from = [(i.file, i.size, i.stamp, i.offset) for i in items]
            shape = (channels, side, side)
            what = f"decoding {split}"
            self._stored = decode_cache.stored(what, made_from, len(items), shape, self._decode, skip_bad)
            if self._stored is None:
                gigabytes = len(items) * channels * side * side / 1e9
                self.notes.append(f"{split}: no room to keep {gigabytes:.1f} GB decoded: each epoch decodes again")
        if self._stored is not None:
            good = self._stored.good
        elif skip_bad:
            for_each(f"checking {split}", len(items), lambda i: self._try(i, good))
        self._pool = None if self._stored is not None else decoders()
        self._places = good.nonzero().flatten()
        self._leave_out(good)
        self.labels = torch.tensor([item.label for item in items])[self._places]

    def __len__(self) -> int:
        return len(self._places)

    def gather(self, indices: Tensor) -> Batch:
        places = self._places[indices].tolist()
        if self._stored is not None:
            images = self._stored.read(places)
        else:
            assert self._pool is not None
            images = torch.stack(list(self._pool.map(self._decode, places)))
        return {"image": images, "label": self.labels[indices], "index": indices}

    def name(self, index: int) -> str:
        return self.items[int(self._places[index])].name

    def _decode(self, place: int) -> Tensor:
        item = self.items[place]
        return decode(item.read(), item.place, self.channels, self.side)

    def _try(self, place: int, good: Tensor) -> None:
        try:
            self._decode(place)
        except InputError:
            good[place] = False

    def _leave_out(self, good: Tensor) -> None:
        bad = (~good).nonzero().flatten().tolist()
        if not bad:
            return
        names = ", ".join(self.items[i].name for i in bad[:3]) + (", ..." if len(bad) > 3 else "")
        what = f"{self.split}: {len(bad)} of {len(self.items)} images cannot be decoded: {names}"
        if len(bad) > MAX_BAD * len(self.items):
            raise InputError(what, f"data.skip_bad leaves out at most {MAX_BAD:.0%}")
        self.notes.append(f"{what}; left out")
