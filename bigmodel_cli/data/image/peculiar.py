"""What a person should know of image files before they are trained on: copies in two splits, and frames not read.

Nothing is decoded. Of large data a part is looked at, evenly spaced, and the note says so.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import PurePath

from bigmodel_cli.core.image.images import image_formats
from bigmodel_cli.data.image.listing import Item

MOST = 500
"""Images of a split that are looked at."""
MOST_CANDIDATES, MOST_READ = 20, 5000
"""Training images of the same size that one image is compared with, and files that are read in all."""
MOST_BYTES = 1 << 28
FRAMED = frozenset((".gif", ".webp", ".png", ".tif", ".tiff", ".avif"))
"""Suffixes of formats that can hold several frames or pages."""


def peculiar_notes(splits: Mapping[str, Sequence[Item]]) -> list[str]:
    """Notes on the images of all `splits`."""
    return [*_copies(splits), *frame_notes(splits)]


def spaced(items: Sequence[Item]) -> Sequence[Item]:
    """At most MOST of `items`, evenly spaced."""
    return items if len(items) <= MOST else [items[i * len(items) // MOST] for i in range(MOST)]


def _copies(splits: Mapping[str, Sequence[Item]]) -> list[str]:
    """Images of another split that are in train too, byte for byte; only files of the same size are read."""
    looked = {split: spaced(items) for split, items in splits.items() if split != "train"}
    sizes = {item.size for items in looked.values() for item in items}
    train: dict[int, list[Item]] = defaultdict(list)
    for item in splits.get("train", ()):
        if item.size in sizes:
            train[item.size].append(item)
    reader = _Reader()
    notes = []
    for split, items in looked.items():
        found = sum(_has_copy(item, train.get(item.size, ()), reader) for item in items)
        of = f"{len(items):,}" if len(items) == len(splits[split]) else f"the {len(items):,} looked at, of {split},"
        notes += [f"{split}: {found:,} of {of} images are in train too, byte for byte"] if found else []
    return notes


def _has_copy(item: Item, same_size: Sequence[Item], reader: _Reader) -> bool:
    name = PurePath(item.name).name
    likely = sorted(same_size, key=lambda other: (PurePath(other.name).name != name, other.label != item.label))
    for other in likely[:MOST_CANDIDATES]:
        if (other.stamp, other.offset) == (item.stamp, item.offset):  # a link to the same file
            return True
        digest = reader.digest(item)
        if digest is not None and digest == reader.digest(other):
            return True
    return False


class _Reader:
    """Digests of files, up to a number of files and of bytes."""

    def __init__(self) -> None:
        self.files, self.bytes = MOST_READ, MOST_BYTES
        self._known: dict[int, bytes] = {}

    def digest(self, item: Item) -> bytes | None:
        """None if too much has been read, or if it cannot be read, which is reported elsewhere."""
        if id(item) not in self._known and self.files > 0 and self.bytes >= item.size:
            self.files, self.bytes = self.files - 1, self.bytes - item.size
            with contextlib.suppress(Exception):
                self._known[id(item)] = hashlib.sha256(item.read()).digest()
        return self._known.get(id(item))


def frame_notes(splits: Mapping[str, Sequence[Item]]) -> list[str]:
    """A note on animations and on files of several pages, of which the first is read."""
    from PIL import Image

    looked = [item for items in splits.values() for item in spaced(items)]
    framed = [item for item in looked if PurePath(item.name).suffix.lower() in FRAMED]
    several, example, left = 0, "", MOST_BYTES
    for item in framed:
        left -= item.size
        if left < 0:
            break
        with contextlib.suppress(Exception), Image.open(io.BytesIO(item.read()), formats=image_formats()) as image:
            frames = getattr(image, "n_frames", 1)
            several += frames > 1
            example = example or (f"{item.name} has {frames}" if frames > 1 else "")
    if not several:
        return []
    of = f"{several:,} of {len(framed):,} images looked at"
    return [f"{of} have several frames or pages, of which the first is read: {example}"]
