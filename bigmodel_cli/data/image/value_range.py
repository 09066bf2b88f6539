"""What becomes black and white in images of more than 8 bits: given, a checkpoint's, or found on train."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Sequence
from pathlib import PurePath
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, Field

from bigmodel_cli.core.image.deep_images import WIDE
from bigmodel_cli.core.image.images import image_formats
from bigmodel_cli.core.specs import ImageSpec, Spec, ValueRange
from bigmodel_cli.data.image.listing import Item


def _ordered(given: ValueRange | None) -> ValueRange | None:
    """For pydantic, which turns a ValueError into a message."""
    if given is not None and not (math.isfinite(given[0]) and math.isfinite(given[1]) and given[0] < given[1]):
        raise ValueError("two finite values, the lower first")
    return given


Given = Annotated[
    ValueRange | None,
    AfterValidator(_ordered),
    Field(description="what becomes black and white in images of more than 8 bits; null: found on train"),
]
EIGHT_BITS = frozenset((".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".dib"))
"""Suffixes of files whose levels have 8 bits, so that they need not be opened."""
MOST, LEAST, MOST_BYTES = 1000, 16, 1 << 29
"""The images that are looked at, evenly spaced: the most, the least, and the most bytes of them."""
PER_IMAGE = 4096  # pixels of an image that are looked at
TAIL = 1e-3  # the share of pixels on either side that may be cut where they stretch the range
STRETCHED = 2.0  # times
OUTSIDE, FEWER = 0.01, 8.0
"""A checkpoint's range is kept for new data with at most this share outside it, and a range not so much smaller."""
BITS_PER_SAMPLE = 258  # the tag of TIFF


def choose_range(
    items: Sequence[Item], like: Spec | None, given: ValueRange | None, fits: bool
) -> tuple[ValueRange | None, list[str]]:
    """The range of values that becomes 0..255 in images of more than 8 bits, and notes on it; None: their high byte.

    `items` are the training images, `like` is the spec of a checkpoint. Data that a checkpoint is measured on is read
    by its range, and with `fits` also data that it is trained on further if the range suits it.
    """
    pixels, wide, colour, looked = _look(items)
    notes = [f"{colour:,} of {looked:,} images have colours of 16 bits: their high byte is read"] if colour else []
    if not wide:
        return given or (like.value_range if isinstance(like, ImageSpec) else None), notes
    known = like.value_range if isinstance(like, ImageSpec) else None
    of = f"{wide:,} of {looked:,} images" if wide < looked else "the images"
    low, high = given or (known if isinstance(like, ImageSpec) and not fits else _suitable(pixels, known)) or (0, 0)
    if low == high:
        what = f"{of} have more than 8 bits, and those that the model was trained on had not"
        return None, [*notes, f"{what}: their high byte is read"]
    levels, shown = len(np.unique(pixels)), f"[{low:g}, {high:g}]"
    beyond = float(((pixels < low) | (pixels > high)).mean())
    kept = len(np.unique(np.rint((pixels - low).clip(0, high - low) * (255 / (high - low)))))
    note = f"{of} have more than 8 bits: values {pixels.min():g} to {pixels.max():g}, {levels:,} levels; "
    note += f"{kept} of them are kept between data.value_range = {shown}"
    return (low, high), [*notes, note + (f", and {beyond:.2%} of the pixels are beyond it" if beyond else "")]


def _suitable(pixels: np.ndarray[Any, Any], known: ValueRange | None) -> ValueRange:
    """The range of `pixels`, or the checkpoint's if it shows them well."""
    low, high = _found(pixels)
    if known is not None:
        outside = ((pixels < known[0]) | (pixels > known[1])).mean()
        if outside <= OUTSIDE and _wide_enough((low, high), known):
            return known
    return low, high


def suits(known: ValueRange, found: ValueRange) -> bool:
    """Whether a checkpoint's range shows images well whose values are within `found`."""
    return known[0] <= found[0] and found[1] <= known[1] and _wide_enough(found, known)


def _wide_enough(found: ValueRange, known: ValueRange) -> bool:
    return known[1] - known[0] <= FEWER * (found[1] - found[0])


def _found(pixels: np.ndarray[Any, Any]) -> ValueRange:
    """From the least to the largest value, unless few pixels stretch that: then without them."""
    least, most = float(pixels.min()), float(pixels.max())
    low, high = (float(x) for x in np.quantile(pixels, (TAIL, 1 - TAIL), method="nearest"))
    if most - least <= STRETCHED * (high - low) or low == high:
        low, high = least, most
    return (low, high) if high > low else (low, low + 1)


def _look(items: Sequence[Item]) -> tuple[np.ndarray[Any, Any], int, int, int]:
    """Pixels of images of more than 8 bits, how many such images, how many with colours of 16 bits, of how many."""
    size = sum(item.size for item in items) / max(len(items), 1)
    count = min(len(items), MOST, max(LEAST, int(MOST_BYTES / max(size, 1))))
    pixels: list[np.ndarray[Any, Any]] = []
    colour = 0
    for place in np.linspace(0, len(items) - 1, count).astype(int).tolist():
        if PurePath(items[place].name).suffix.lower() in EIGHT_BITS:
            continue
        with contextlib.suppress(Exception):  # a damaged file is reported where it is decoded
            values, deep = _values(items[place].read())
            colour += deep
            pixels += [] if values is None else [values]
    pooled = np.concatenate(pixels) if pixels else np.empty(0)
    pooled = pooled[np.isfinite(pooled)]
    return pooled, len(pixels) if len(pooled) else 0, colour, count


def _values(raw: bytes) -> tuple[np.ndarray[Any, Any] | None, bool]:
    """Some pixels of an image with gray levels of more than 8 bits, else None; and whether its colours have 16 bits."""
    from PIL import Image

    with Image.open(io.BytesIO(raw), formats=image_formats()) as image:
        if image.mode[0] not in WIDE:
            bits = raw[24] if image.format == "PNG" else 8
            if image.format == "TIFF":
                bits = max(image.tag_v2.get(BITS_PER_SAMPLE, (8,)))  # type: ignore[attr-defined]
            return None, bits > 8
        values = np.asarray(image, np.float64).ravel()
    return values[:: max(1, len(values) // PER_IMAGE)], False
