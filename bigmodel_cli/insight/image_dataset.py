"""Inspects an image data set before training: counts, sizes, formats, leaks, damaged files; and a contact sheet."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy
import torch

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.files import atomic_files
from bigmodel_cli.core.image.images import decode, image_header
from bigmodel_cli.core.specs import ValueRange
from bigmodel_cli.data.balance import describe_imbalance
from bigmodel_cli.data.image.listing import Item, Listing
from bigmodel_cli.data.image.own_size import own_size
from bigmodel_cli.data.image.peculiar import frame_notes
from bigmodel_cli.data.image.value_range import choose_range
from bigmodel_cli.data.thread_map import for_each

TINY = 32  # side in pixels at which images are compared
MAX_HASH_BITS = 3  # maximum differing bits, of 64, of the gradient hashes of near duplicates
MAX_GREY_DIFFERENCE = 4.0  # maximum mean difference of their grey levels
MAX_BUCKET = 200  # larger buckets are skipped: hash parts that common say little about similarity
TILE = 96  # side in pixels of an image on the contact sheet


@dataclass
class ImageInfo:
    """The properties of one image; `problem` is set if it cannot be decoded."""

    item: Item
    split: str
    format: str = ""
    mode: str = ""
    width: int = 0
    height: int = 0
    digest: bytes = b""
    grey: numpy.ndarray[Any, Any] | None = field(default=None, repr=False)
    problem: str = ""

    @property
    def name(self) -> str:
        return self.item.name


@dataclass(frozen=True)
class Findings:
    """The result of an inspection."""

    listing: Listing
    looks: list[ImageInfo]
    same: list[tuple[ImageInfo, ImageInfo]]
    near: list[tuple[ImageInfo, ImageInfo]]

    @property
    def undecodable(self) -> list[ImageInfo]:
        return [look for look in self.looks if look.problem]

    @property
    def size(self) -> int:
        """The size at which training sees the images unless it is told another."""
        return own_size([min(look.width, look.height) for look in self.looks if not look.problem])[0]

    def to_dict(self) -> dict[str, Any]:
        listing = self.listing
        imbalance = [describe_imbalance(listing.counts(listing.first_split), listing.classes)]
        good = [look for look in self.looks if not look.problem]
        sides = sorted((look.width, look.height) for look in good)
        short = sorted(min(side) for side in sides)
        return {
            "classes": len(listing.classes),
            "images": {split: len(items) for split, items in listing.splits.items()},
            "counts": {
                name: {split: listing.counts(split)[k] for split in listing.splits}
                for k, name in enumerate(listing.classes)
            },
            "formats": dict(Counter(look.format for look in good).most_common()),
            "modes": dict(Counter(look.mode for look in good).most_common()),
            "shorter_side": {"min": short[0], "median": median(short), "max": short[-1]} if short else None,
            "undecodable": [{"name": look.name, "problem": look.problem} for look in self.undecodable],
            "leaks": _pairs(self.same, across=True),
            "duplicates": _pairs(self.same, across=False),
            "two_labels": [[a.name, b.name] for a, b in self.same if a.item.label != b.item.label],
            "near_leaks": _pairs(self.near, across=True),
            "near_duplicates": _pairs(self.near, across=False),
            "suggested_size": self.size,
            "notes": [*listing.notes, *filter(None, imbalance)],
        }


def _pairs(pairs: Iterable[tuple[ImageInfo, ImageInfo]], across: bool) -> list[list[str]]:
    return [[a.name, b.name] for a, b in pairs if (a.split != b.split) == across]


def inspect(listing: Listing) -> Findings:
    """Read every image of every split once, in parallel."""
    looks = [ImageInfo(item, split) for split, items in listing.splits.items() for item in items]
    value_range, notes = choose_range(listing.splits[listing.first_split], None, None, True)
    for_each("reading images", len(looks), lambda i: _read_info(looks[i], value_range))
    good = [look for look in looks if not look.problem]
    same = _exact_duplicates((look.digest, look) for look in good)
    exact = {id(b) for _, b in same}
    listing = replace(listing, notes=(*listing.notes, *notes, *frame_notes(listing.splits)))
    return Findings(listing, looks, same, _near_duplicates([look for look in good if id(look) not in exact]))


def _read_info(look: ImageInfo, value_range: ValueRange | None) -> None:
    try:
        raw = look.item.read()
        pixels = decode(raw, look.name, 1, TINY, value_range=value_range)
        look.format, look.width, look.height, look.mode = image_header(raw)
    except InputError as error:
        look.problem = error.what.removeprefix(f"{look.name}: ")
        return
    look.digest = hashlib.sha256(raw).digest()
    look.grey = pixels[0].float().view(8, 4, 8, 4).mean((1, 3)).numpy()


def _exact_duplicates(keyed: Iterable[tuple[bytes, ImageInfo]]) -> list[tuple[ImageInfo, ImageInfo]]:
    """Pairs of each repeated image with its first occurrence."""
    first: dict[bytes, ImageInfo] = {}
    pairs = []
    for key, look in keyed:
        if key in first:
            pairs.append((first[key], look))
        first.setdefault(key, look)
    return pairs


def _near_duplicates(looks: list[ImageInfo]) -> list[tuple[ImageInfo, ImageInfo]]:
    """Pairs of similar images: gradient hashes within MAX_HASH_BITS, confirmed by comparing pixels.

    Hashes that differ in at most 3 bits agree in at least one of 4 quarters, so only such pairs are compared.
    """
    buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    hashes = []
    for place, look in enumerate(looks):
        assert look.grey is not None
        grey = numpy.concatenate([look.grey, look.grey[:, :1]], 1)
        bits = numpy.packbits(grey[:, 1:] > grey[:, :-1])
        hashes.append(int.from_bytes(bits.tobytes(), "big"))
        if numpy.ptp(look.grey) > 2 * MAX_GREY_DIFFERENCE:  # uniform images are all similar
            for part in range(4):
                buckets[part, bits[2 * part : 2 * part + 2].tobytes()].append(place)
    found: set[tuple[int, int]] = set()
    for members in buckets.values():
        if len(members) > MAX_BUCKET:
            continue
        for i, a in enumerate(members):
            for b in members[i + 1 :]:
                if (hashes[a] ^ hashes[b]).bit_count() <= MAX_HASH_BITS and (a, b) not in found:
                    one, two = looks[a].grey, looks[b].grey
                    if one is not None and two is not None and numpy.abs(one - two).mean() <= MAX_GREY_DIFFERENCE:
                        found.add((a, b))
    return [(looks[a], looks[b]) for a, b in sorted(found)]


def contact_sheet(listing: Listing, path: Path, rows: int = 12, columns: int = 8) -> None:
    """Write a PNG with evenly spaced train images, one row per class, centre-cropped as for the model.

    Raises:
        MachineError: `path` is not writable.
    """
    from PIL import Image, ImageDraw

    members: Mapping[int, list[Item]] = defaultdict(list)
    for item in listing.splits[listing.first_split]:
        members[item.label].append(item)
    shown = list(range(len(listing.classes)))[:rows]
    margin = 20
    value_range, _ = choose_range(listing.splits[listing.first_split], None, None, True)
    sheet = Image.new("RGB", (columns * (TILE + 4) + 4, len(shown) * (TILE + margin + 4) + 4), "white")
    draw = ImageDraw.Draw(sheet)
    for row, label in enumerate(shown):
        top = 4 + row * (TILE + margin + 4)
        items = members[label]
        text = f"{listing.classes[label]}  ({len(items)})".encode("latin-1", "replace").decode("latin-1")
        draw.text((4, top + 3), text[:90], fill="black")
        chosen = torch.linspace(0, len(items) - 1, min(columns, len(items))).round().int().tolist()
        for column, place in enumerate(chosen):
            try:
                pixels = decode(items[place].read(), items[place].name, 3, TILE, value_range=value_range)
            except InputError:
                draw.rectangle((4 + column * (TILE + 4), top + margin, column * (TILE + 4) + TILE, top + margin + TILE))
                continue
            tile = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
            sheet.paste(tile, (4 + column * (TILE + 4), top + margin))
    atomic_files.replace(path, lambda draft: sheet.save(draft, "PNG"), lambda: sheet.width * sheet.height)
