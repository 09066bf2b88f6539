"""Masks that lie beside the images they belong to: ``7_mask.png`` beside ``7.png``. They are no images of a class."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bigmodel_cli.data.image.listing import Item

MASK = re.compile(r"[-_ .](?:mask|masks|seg|segmentation|annotation|gt)[-_ ]?\d*(?=\.\w+$)", re.IGNORECASE)
"""The end of a mask's name, before its suffix."""
SUFFIX = re.compile(r"\.\w+$")


def without_masks(items: Sequence[Item]) -> tuple[list[Item], list[tuple[str, str]]]:
    """The items of a class without masks, and (mask, image) for each mask: if half of the images or more have one."""
    masks = {item.name: MASK.sub("", item.name) for item in items if MASK.search(item.name)}
    if not masks:
        return list(items), []
    images = {SUFFIX.sub("", item.name): item.name for item in items if item.name not in masks}
    pairs = [(mask, images[stem]) for mask, base in masks.items() if (stem := SUFFIX.sub("", base)) in images]
    if 2 * len({image for _, image in pairs}) < len(images):
        return list(items), []
    left = {mask for mask, _ in pairs}
    return [item for item in items if item.name not in left], pairs
