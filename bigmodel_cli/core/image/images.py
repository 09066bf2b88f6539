"""Decodes images, for data sets, ``eval`` and ``predict`` alike.

It is in core because data and tasks may not import each other, and two decoders could give different pixels.
Shapes: C channels, H height, W width, S side of a square.
"""

from __future__ import annotations

import contextlib
import functools
import io
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, cast

from bigmodel_cli.core.counted import counted
from bigmodel_cli.core.errors import InputError, MachineError
from bigmodel_cli.core.extras import install_line
from bigmodel_cli.core.image.deep_images import WIDE, eight_bits

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from bigmodel_cli.core.specs import Interpolation, ValueRange

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF")
"""The formats that are always accepted, recognised by content and not by file name; see :func:`image_formats`."""
EXTRA_SUFFIXES = {
    ".avif": "AVIF", ".heic": "HEIF", ".heif": "HEIF", ".hif": "HEIF", ".jxl": "JXL",
}  # fmt: skip
"""Suffix -> the format that needs a decoder of the extra ``formats``."""
SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".gif",
    ".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff",
})  # fmt: skip
"""The suffixes of image files that are always read; see :func:`image_suffixes`."""
MAX_PIXELS = 64_000_000
MAX_SIDE = 65_535  # as in JPEG; a side of millions would take memory that the number of pixels does not show
STRIP_PIXELS = 1 << 20
ORIENTATION = 274  # the EXIF tag
TURNS = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90",
}  # fmt: skip
"""EXIF orientation -> the name of PIL's transposition that undoes it."""


@functools.cache
def _extra_formats() -> frozenset[str]:
    """The formats whose decoder is installed."""
    from PIL import features

    found = {"AVIF"} if features.check("avif") else set()
    with contextlib.suppress(ImportError, OSError):
        import pillow_heif

        pillow_heif.register_heif_opener()
        found.add("HEIF")
    with contextlib.suppress(ImportError, OSError):
        import pillow_jxl  # noqa: F401 (registers itself)

        found.add("JXL")
    return frozenset(found)


def image_formats() -> tuple[str, ...]:
    """The formats that can be decoded here."""
    return (*FORMATS, *sorted(_extra_formats()))


@functools.cache
def image_suffixes() -> frozenset[str]:
    """The suffixes of the image files that can be decoded here."""
    return SUFFIXES | {suffix for suffix, kind in EXTRA_SUFFIXES.items() if kind in _extra_formats()}


def describe_unused(suffixes: Mapping[str, int]) -> str:
    """A note of the files that are no images, or of a format that cannot be decoded here, by suffix."""
    total, most = sum(suffixes.values()), 6
    ranked = sorted(suffixes.items(), key=lambda pair: (-pair[1], pair[0]))
    shown = ", ".join(f"{suffix} {n:,}" for suffix, n in ranked[:most]) + (", ..." if len(ranked) > most else "")
    able = sorted(suffix for suffix in suffixes if suffix in EXTRA_SUFFIXES)
    hint = f"; {' and '.join(able)} can be read after {install_line('formats')}" if able else ""
    return f"{counted(total, 'file')} not used: {shown}{hint}"


def decode(
    raw: bytes,
    name: str,
    channels: int,
    side: int | None = None,
    interpolation: Interpolation = "bilinear",
    value_range: ValueRange | None = None,
) -> Tensor:
    """(C,H,W) uint8: the upright image in `raw`, with 1 channel (luma) or 3 (RGB), transparency over white.

    With `side`, the largest centred square, resized (antialiased) to (C,side,side). With bilinear interpolation,
    large JPEG files are decoded at 1/2, 1/4 or 1/8 scale, never below twice the side: twice as fast for 4000x3000.
    Bicubic gives the pixels that timm's evaluation does; see :func:`bicubic_square`. Images of more than 8 bits are
    mapped from `value_range` to 0..255; see :func:`bigmodel_cli.core.image.deep_images.eight_bits`.

    Raises:
        InputError: the format is not in FORMATS, or the image is larger than MAX_PIXELS or damaged.
            The message calls it `name`.
        MachineError: there is not enough memory for it.
    """
    with _opened(raw, name, MAX_PIXELS) as image:
        if side is not None and interpolation == "bicubic":
            return _to_tensor(bicubic_square(_upright(image, channels, value_range), side), channels)
        pixels = _pixels(image, raw, channels, side, value_range)
    return pixels if side is None else _square(pixels, side)


def decode_plain(
    raw: bytes,
    name: str,
    channels: int,
    side: int | None = None,
    most: int = MAX_PIXELS,
    value_range: ValueRange | None = None,
) -> Image:
    """As :func:`decode`, but without torch: an upright PIL image in mode L or RGB.

    With `side`, which only bilinear interpolation gives, a large JPEG file is decoded at a smaller scale; the image is
    not cropped. An image of more than `most` pixels is refused.
    """
    with _opened(raw, name, most) as image:
        if side is not None:
            _draft(image, side)
        return _upright(image, channels, value_range)


@contextlib.contextmanager
def _opened(raw: bytes, name: str, most: int) -> Iterator[Image]:
    """The image in `raw` with its header read; any error in the block becomes an InputError."""
    from PIL import Image, UnidentifiedImageError

    _quiet()
    try:
        with Image.open(io.BytesIO(raw), formats=image_formats()) as image:
            width, height = image.size
            if width * height > most or max(width, height) > MAX_SIDE:
                expected = f"expected at most {most}, and {MAX_SIDE} a side"
                raise InputError(f"{name}: {width}x{height} pixels", expected)
            yield image
    except UnidentifiedImageError:
        raise InputError(f"{name}: not an image", "expected one of " + ", ".join(image_formats())) from None
    except Image.DecompressionBombError:
        raise InputError(f"{name}: too many pixels", f"expected at most {most}") from None
    except InputError:
        raise
    except MemoryError:
        raise MachineError(f"{name}: not enough memory to decode it", hint="a smaller image, or more memory") from None
    except Exception as error:  # a damaged file raises many classes of errors, among them struct.error and KeyError
        raise InputError(f"{name}: cannot decode the image: {error or type(error).__name__}") from None


def image_header(raw: bytes) -> tuple[str, int, int, str]:
    """(format, width, height, PIL mode) without decoding; width and height as stored.

    Raises:
        Exception: of any class, if the header is damaged.
    """
    from PIL import Image

    _quiet()
    with Image.open(io.BytesIO(raw), formats=image_formats()) as image:
        return str(image.format), image.width, image.height, image.mode


@functools.cache
def _quiet() -> None:
    """Silence PIL's warnings about odd metadata, which is harmless, and large images, which are refused here.

    Done once per process, since `warnings.catch_warnings` is not thread-safe.
    """
    warnings.filterwarnings("ignore", module="PIL")


def _pixels(image: Image, raw: bytes, channels: int, side: int | None, value_range: ValueRange | None) -> Tensor:
    import torch

    full = image.size
    if side is not None:
        _draft(image, side)
    jpeg = image.format == "JPEG" and image.mode in ("RGB", "L")
    fast = _torchcodec() if jpeg and channels == 3 and image.size == full else None
    if fast is not None:
        try:
            return fast(torch.frombuffer(bytearray(raw), dtype=torch.uint8))
        except RuntimeError:
            pass  # PIL's message is more readable
    return _to_tensor(_upright(image, channels, value_range), channels)


def _to_tensor(image: Image, channels: int) -> Tensor:
    import torch

    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flat.view(image.height, image.width, channels).permute(2, 0, 1)


def _draft(image: Image, side: int) -> None:
    """Decode a large JPEG at a smaller scale, never below twice the side: no visible difference."""
    if image.format == "JPEG" and image.mode in ("RGB", "L"):
        image.draft(image.mode, (2 * side, 2 * side))


def _upright(image: Image, channels: int, value_range: ValueRange | None) -> Image:
    """The pixels in mode L or RGB, rotated according to EXIF."""
    from PIL import Image

    image.load()  # PIL applies a TIFF's orientation here, and drops its tag
    turn = TURNS.get(image.getexif().get(ORIENTATION, 1))
    image = _plain(image, "L" if channels == 1 else "RGB", value_range)
    return image if turn is None else image.transpose(Image.Transpose[turn])


def _plain(image: Image, mode: str, value_range: ValueRange | None) -> Image:
    """Convert `image` to 8-bit `mode`: transparency becomes white."""
    if image.mode[0] in WIDE:
        image = eight_bits(image, value_range)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        return _over_white(image, mode)
    return image if image.mode == mode else image.convert(mode)


def _over_white(image: Image, mode: str) -> Image:
    """`image` over white, a strip at a time: whole, it would take four times the memory."""
    from PIL import Image

    whole = Image.new(mode, image.size)
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        strip = image.crop(box).convert("RGBA")
        whole.paste(Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip).convert(mode), box)
    return whole


def bicubic_square(image: Image, side: int) -> Image:
    """The centred square of `image` after its shorter side is resized to `side`: what timm's and torchvision's
    evaluation transforms do, pixel for pixel.

    Since they resize before they crop, the square may begin between two pixels, and its edges see pixels beyond it.
    """
    from PIL import Image

    width, height = image.size
    if width == height == side:
        return image
    wide, tall = side * width // min(image.size), side * height // min(image.size)
    left, top = round((wide - side) / 2), round((tall - side) / 2)
    across, down = width / wide, height / tall
    box = (left * across, top * down, (left + side) * across, (top + side) * down)
    return image.resize((side, side), Image.Resampling.BICUBIC, box=box)


def _square(pixels: Tensor, side: int) -> Tensor:
    from torch.nn import functional as F

    _, height, width = pixels.shape
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    pixels = pixels[:, top : top + short, left : left + short]
    if short == side:
        return pixels.contiguous()
    return F.interpolate(pixels[None], (side, side), mode="bilinear", antialias=True)[0].contiguous()


@functools.cache
def _torchcodec() -> Callable[[Tensor], Tensor] | None:
    """torchcodec's JPEG decoder, or None if it is not installed or incompatible with this torch.

    It applies EXIF orientation itself and gives the same pixels as PIL (both use libjpeg-turbo), so that
    predictions do not depend on it; tests/core/test_images.py compares them.
    """
    try:
        from torchcodec.decoders import decode_jpeg
    except (ImportError, OSError, RuntimeError):
        return None
    return cast("Callable[[Tensor], Tensor]", decode_jpeg)
