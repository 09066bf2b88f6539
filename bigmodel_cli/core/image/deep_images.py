"""Images of more than 8 bits, whose values become the 256 levels that models see."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

    from bigmodel_cli.core.specs import ValueRange

WIDE = "IF"
"""The first letters of PIL's modes of more than 8 bits: I;16 and variants, I (32 bits) and F (floating-point)."""


def eight_bits(image: Image, value_range: ValueRange | None) -> Image:
    """Gray levels of more than 8 bits, or floating-point numbers, as 8 bits: `value_range` becomes 0..255.

    What is beyond the range is black or white. Without a range, 16 bits keep their high byte.

    Raises:
        ValueError: a pixel is NaN, or there is no range and the values have none of their own.
    """
    import numpy
    from PIL import Image

    values = numpy.asarray(image)
    if value_range is not None:
        low, high = value_range
        if image.mode == "F" and numpy.isnan(values).any():
            raise ValueError("it has pixels that are no numbers (NaN)")
        scaled = (values.astype(numpy.float64) - low) * (255 / (high - low))
        return Image.fromarray(numpy.rint(scaled.clip(0, 255)).astype(numpy.uint8))
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, whose range is unknown")
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError("its pixels are 32-bit numbers, whose range is unknown")
    return Image.fromarray((values >> 8).astype(numpy.uint8))
