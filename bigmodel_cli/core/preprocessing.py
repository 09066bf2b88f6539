"""Turns an image file into model input as an export's ``preprocess.json`` describes, with PIL and NumPy only.

Training preprocesses with torch, which an exported model should not need.
tests/core/test_preprocessing.py compares the two. Shapes: C channels, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bigmodel_cli.core.image.images import MAX_PIXELS, STRIP_PIXELS, bicubic_square, decode_plain
from bigmodel_cli.core.specs import ImageSpec

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image


RESIZES = ("resize_square", "resize")
STEPS = ("value_range", "crop_square", *RESIZES, "crop")
"""The steps that some images have and others have not."""


def describe_image_steps(spec: ImageSpec) -> dict[str, Any]:
    """The ``preprocess.json`` of an export: the steps of :func:`prepare` for images of `spec`, in order."""
    resize = {"height": spec.height, "width": spec.width, "interpolation": f"{spec.interpolation}, antialiased"}
    steps: dict[str, Any] = {"resize": resize}
    if spec.square is not None:
        side = round(spec.square * spec.crop)
        steps = {
            "crop_square": "centred, of the image's shorter side",
            "resize_square": {**resize, "height": spec.square, "width": spec.square},
            "crop": {"height": side, "width": side, "where": "centre"},
        }
        steps |= {} if (side, side) == (spec.height, spec.width) else {"resize": resize}
    return {
        "mode": "L" if spec.channels == 1 else "RGB",
        "transparency": "over white",
        "orientation": "EXIF applied",
        **({"value_range": list(spec.value_range)} if spec.value_range is not None else {}),
        **steps,
        "scale": 1 / 255,
        "mean": list(spec.mean),
        "std": list(spec.std),
        "layout": "NCHW float32",
    }


def prepare(raw: bytes, name: str, how: Mapping[str, Any], most: int = MAX_PIXELS) -> np.ndarray:
    """(C,H,W) float32 from the image in `raw`; `how` is the result of the task's ``preprocessing()``.

    A pixel may differ by one gray level from torch's resize, which rounds differently.

    Raises:
        InputError: not an image, more than `most` pixels, or damaged. The message calls it `name`.
    """
    import numpy as np

    channels = 1 if how["mode"] == "L" else 3
    square = how["resize_square"]["height"] if "resize_square" in how else None
    bicubic = any(how.get(key, {}).get("interpolation", "").startswith("bicubic") for key in RESIZES)
    image = decode_plain(raw, name, channels, None if bicubic else square, most, how.get("value_range"))
    if square is not None:
        image = bicubic_square(image, square) if bicubic else _square(image, square)
    if "crop" in how:
        image = _middle(image, how["crop"]["width"], how["crop"]["height"])
    size = (how["resize"]["width"], how["resize"]["height"]) if "resize" in how else image.size
    pixels = _resized(image, size[0], size[1], bicubic)
    mean, std = (np.asarray(how[key], np.float32).reshape(-1, 1, 1) for key in ("mean", "std"))
    if mean.size:
        pixels = (pixels - mean / np.float32(how["scale"])) / (std / np.float32(how["scale"]))
    return np.ascontiguousarray(pixels, dtype=np.float32)


def raw_pixels(
    raw: bytes, name: str, spec: ImageSpec, size: tuple[int, int] | None, most: int = MAX_PIXELS
) -> np.ndarray:
    """(H,W,C) uint8 for a model that includes its preprocessing: the centred square, or the full image.

    It is resized to `size` (H,W), the model's input size. None means that the model accepts any size. The image is
    then resized as the model would do it, so that large images take little memory and batches have one size.

    Raises:
        InputError: as :func:`prepare`.
    """
    import numpy as np
    from PIL import Image

    bicubic = spec.interpolation == "bicubic"
    image = decode_plain(raw, name, spec.channels, None if bicubic else spec.square, most, spec.value_range)
    if spec.square is not None:
        image = bicubic_square(image, spec.square) if bicubic else _square(image, spec.square)
    height, width = size or ((spec.square,) * 2 if spec.square is not None else (spec.height, spec.width))
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.uint8).reshape(image.height, image.width, spec.channels)


def _square(image: Image, side: int) -> Image:
    from PIL import Image

    short = min(image.size)
    image = _middle(image, short, short)
    return image if short == side else image.resize((side, side), Image.Resampling.BILINEAR)


def _middle(image: Image, width: int, height: int) -> Image:
    if image.size == (width, height):
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _resized(image: Image, width: int, height: int, bicubic: bool) -> np.ndarray:
    """(C,height,width) float32, antialiased, without rounding to gray levels.

    Float pixels take four times the memory of gray levels, so that only a band of rows is converted at a time.
    """
    import numpy as np
    from PIL import Image

    channels = len(image.getbands())
    if image.size == (width, height):
        pixels = np.asarray(image, dtype=np.float32).reshape(height, width, channels)
        return pixels.transpose(2, 0, 1)
    result = np.empty((channels, height, width), np.float32)
    how = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR
    scale = image.height / height
    reach = (2 if bicubic else 1) * max(scale, 1) + 1  # source rows beyond a band that its outermost rows are made from
    rows = max(1, int((STRIP_PIXELS / image.width - 2 * reach) / scale))
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        first, last = max(0, int(top * scale - reach)), min(image.height, math.ceil(bottom * scale + reach))
        strip = image.crop((0, first, image.width, last))
        box = (0, top * scale - first, image.width, min(bottom * scale - first, strip.height))
        for channel, plane in enumerate(strip.split()):
            band = plane.convert("F").resize((width, bottom - top), how, box=box)
            result[channel, top:bottom] = np.asarray(band)
    return result.clip(0, 255) if bicubic else result  # a bicubic filter overshoots at edges
