"""A split of image files, decoded in parallel and cached on disk if there is room."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.image.images import decode
from bigmodel_cli.core.specs import Interpolation, ValueRange
from bigmodel_cli.core.splits import name_hash
from bigmodel_cli.core.types import Batch
from bigmodel_cli.data.image import decode_cache
from bigmodel_cli.data.image.listing import Item
from bigmodel_cli.data.thread_map import decoder_pool, for_each

MAX_BAD = 0.05  # the fraction of a split that may be skipped; with more, something else is wrong


class ImageFiles:
    """One split of images, each a (C,side,side) uint8 square.

    Args:
        items: the images and their labels.
        side: the side in pixels that each is resized and cropped to.
        channels: 1 or 3.
        split: the name of the split.
        skip_bad: skip undecodable images instead of stopping at the first.
        cache: cache the decoded squares on disk.
        interpolation: how each is resized.
        value_range: what becomes 0..255 in images of more than 8 bits.

    Raises:
        InputError: an image cannot be decoded; with `skip_bad`, more than MAX_BAD of them.
    """

    def __init__(
        self,
        items: Sequence[Item],
        side: int,
        channels: int,
        split: str,
        skip_bad: bool,
        cache: Literal["auto", "off"],
        interpolation: Interpolation = "bilinear",
        value_range: ValueRange | None = None,
    ) -> None:
        self.interpolation, self.value_range = interpolation, value_range
        self.items, self.side, self.channels, self.split = items, side, channels, split
        self.notes: list[str] = []
        self._cached: decode_cache.CachedImages | None = None
        good = torch.ones(len(items), dtype=torch.bool)
        if cache == "auto":
            decode_cache.wait_for_clock_tick(max(item.stamp[1] for item in items))
            made_from: list[object] = [(i.file, i.size, i.stamp, i.offset) for i in items]
            made_from += [interpolation] if interpolation != "bilinear" else []
            made_from += [value_range] if value_range is not None else []
            shape = (channels, side, side)
            what = f"decoding {split}"
            self._cached = decode_cache.open_or_fill(what, made_from, len(items), shape, self._decode, skip_bad)
            if self._cached is None:
                gigabytes = len(items) * channels * side * side / 1e9
                self.notes.append(
                    f"{split}: no room to cache {gigabytes:.1f} GB of decoded images; decoding every epoch"
                )
        if self._cached is not None:
            good = self._cached.good
        elif skip_bad:
            for_each(f"checking {split}", len(items), lambda i: self._check(i, good))
        self._pool = None if self._cached is not None else decoder_pool()
        self._usable = good.nonzero().flatten()
        self._report_undecodable(good)
        self.labels = torch.tensor([item.label for item in items])[self._usable]
        if self._cached is not None:  # the same pixels in files of one size: the same file, beyond doubt
            sizes = torch.tensor([item.size for item in items])
            self.contents = ((self._cached.sums << 28) ^ sizes)[self._usable]

    @functools.cached_property
    def groups(self) -> Tensor:
        """(N,) int64: a hash of each image's group, or of its name."""
        return torch.tensor([name_hash(item.group or item.name) for item in self.items])[self._usable]

    def __len__(self) -> int:
        return len(self._usable)

    def gather(self, indices: Tensor) -> Batch:
        places = self._usable[indices].tolist()
        if self._cached is not None:
            images = self._cached.read(places)
        else:
            assert self._pool is not None
            images = torch.stack(list(self._pool.map(self._decode, places)))
        return {"image": images, "label": self.labels[indices], "index": indices}

    def name(self, index: int) -> str:
        return self.items[int(self._usable[index])].name

    def file(self, index: int) -> bytes:
        return self.items[int(self._usable[index])].read()

    def _decode(self, place: int) -> Tensor:
        item = self.items[place]
        try:
            return decode(item.read(), item.location, self.channels, self.side, self.interpolation, self.value_range)
        except InputError as error:
            hint = error.hint or f"--set data.skip_bad=true leaves such files out, up to {MAX_BAD:.0%} of a split"
            raise InputError(error.what, error.expected, hint) from None

    def _check(self, place: int, good: Tensor) -> None:
        try:
            self._decode(place)
        except InputError:
            good[place] = False

    def _report_undecodable(self, good: Tensor) -> None:
        bad = (~good).nonzero().flatten().tolist()
        if not bad:
            return
        names = ", ".join(self.items[i].name for i in bad[:3]) + (", ..." if len(bad) > 3 else "")
        what = f"{self.split}: {len(bad)} of {len(self.items)} images cannot be decoded: {names}"
        if len(bad) > MAX_BAD * len(self.items):
            hint = "bigmodel data inspect names all of them; repair or remove them"
            raise InputError(what, f"data.skip_bad skips at most {MAX_BAD:.0%}", hint)
        self.notes.append(f"{what}; skipped")
