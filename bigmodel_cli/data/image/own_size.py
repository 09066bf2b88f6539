"""The size at which a model sees images, where the recipe does not say: the checkpoint's, or the images' own."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch

from bigmodel_cli.core.image.images import image_header
from bigmodel_cli.core.specs import ImageSpec, Spec
from bigmodel_cli.data.image.listing import Item

USUAL, USUAL_CROP = 224, 0.875
"""The side in pixels of most published networks, which see the centre of a square of 256."""
SMALLEST = 8
STEP = 8  # networks halve maps several times, and divide them into patches
LOOKED_AT = 64  # images, evenly spaced over the split


def choose_size(
    items: Sequence[Item], like: Spec | None, size: int | None, crop: float | None
) -> tuple[int, float, list[str]]:
    """The size in pixels, the crop, and a note on how they were chosen, given those of the recipe or None.

    The checkpoint to continue from is `like`. Without one, images are not enlarged: the size is the median of their
    shorter sides, at most `USUAL`.
    """
    if size is None and isinstance(like, ImageSpec):
        size, usual = like.height, USUAL_CROP if like.height >= USUAL else 1.0
        crop = crop if crop is not None else like.crop if like.square is not None else usual
        return size, crop, []
    if size is not None:
        return size, USUAL_CROP if crop is None else crop, []
    sides = _shorter_sides(items)
    size, crop = own_size(sides, crop)
    if size == USUAL or not sides:
        return size, crop, []
    of = f"all {sides[0]}" if len(set(sides)) == 1 else f"{statistics.median(sides):g} in the median"
    note = f"the images' shorter sides are {of} pixels: data.size = {size}, data.crop = {crop:g}"
    return size, crop, [note]


def own_size(sides: Sequence[int], crop: float | None = None) -> tuple[int, float]:
    """The size in pixels and the crop for images with these shorter sides."""
    short = round(statistics.median(sides)) if sides else USUAL
    if crop is None:
        crop = min(1.0, max(USUAL_CROP, USUAL / max(short, 1)))
    size = max(SMALLEST, min(USUAL, round(short * crop)))
    return size // STEP * STEP if size >= 4 * STEP else size, crop


def _shorter_sides(items: Sequence[Item]) -> list[int]:
    """The shorter side of some images in pixels, by their headers; damaged ones are left to the decoder."""
    sides = []
    for place in torch.linspace(0, len(items) - 1, min(LOOKED_AT, len(items))).long().tolist():
        try:
            _, width, height, _ = image_header(items[place].read())
        except Exception:  # a damaged header raises many classes of errors
            continue
        sides.append(min(width, height))
    return sides
