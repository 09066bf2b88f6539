"""A picture file's bytes to a model's input, as ``preprocess.json`` of an export says, by PIL and NumPy alone.

What decodes and prepares in training needs torch, which an exported model is meant to live without.
tests/core/test_prepare.py holds the two together. Shapes: C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bigmodel_cli.core.images import MAX_PIXELS, decode_plain
from bigmodel_cli.core.specs import ImageSpec

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image


def prepare(raw: bytes, name: str, how: Mapping[str, Any], most: int = MAX_PIXELS) -> np.ndarray:
    """(C,H,W) float32 from the picture in `raw`; `how` is what the task's ``preprocessing()`` gave.

    A pixel may be one grey level off what torch's resize gives, which rounds otherwise than PIL's.

    Raises:
        InputError: not a picture, of more than `most` pixels, or damaged. `name` is what the message calls it.
    """
    import numpy as np

    channels = 1 if how["mode"] == "L" else 3
    square = how["resize_square"]["height"] if "resize_square" in how else None
    picture = decode_plain(raw, name, channels, square, most)
    if square is not None:
        picture = _square(picture, square)
    if "crop" in how:
        picture = _middle(picture, how["crop"]["width"], how["crop"]["height"])
    pixels = np.asarray(picture, dtype=np.float32).reshape(picture.height, picture.width, channels)
    pixels = pixels.transpose(2, 0, 1)
    if "resize" in how:
        pixels = _resized(pixels, how["resize"]["width"], how["resize"]["height"])
    mean, std = (np.asarray(how[key], np.float32).reshape(-1, 1, 1) for key in ("mean", "std"))
    if mean.size:
        pixels = (pixels - mean / np.float32(how["scale"])) / (std / np.float32(how["scale"]))
    return np.ascontiguousarray(pixels, dtype=np.float32)


def plain(raw: bytes, name: str, spec: ImageSpec, size: tuple[int, int] | None, most: int = MAX_PIXELS) -> np.ndarray:
    """(H,W,C) uint8, for a model that prepares its pictures itself: the square in the middle, or all of the picture.

    It is of the `size` (H,W) that the model takes; None, any: of the size that the model would make of it. So a large
    picture is not kept, and batches are of one size.

    Raises:
        InputError: as :func:`prepare`.
    """
    import numpy as np
    from PIL import Image

    picture = decode_plain(raw, name, spec.channels, spec.square, most)
    if spec.square is not None:
        picture = _square(picture, spec.square)
    height, width = size or ((spec.square,) * 2 if spec.square is not None else (spec.height, spec.width))
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(picture, dtype=np.uint8).reshape(picture.height, picture.width, spec.channels)


def _square(picture: Image, side: int) -> Image:
    from PIL import Image

    short = min(picture.size)
    picture = _middle(picture, short, short)
    return picture if short == side else picture.resize((side, side), Image.Resampling.BILINEAR)


def _middle(picture: Image, width: int, height: int) -> Image:
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))


def _resized(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """(C,H',W') -> (C,height,width), bilinear and antialiased, without rounding to grey levels."""
    import numpy as np
    from PIL import Image

    if pixels.shape[1:] == (height, width):
        return pixels
    planes = [Image.fromarray(np.ascontiguousarray(plane)) for plane in pixels]
    return np.stack([np.asarray(p.resize((width, height), Image.Resampling.BILINEAR)) for p in planes])
