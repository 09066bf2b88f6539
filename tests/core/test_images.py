"""Image files to pixels: every kind that people have, upright, over white, and the same with either decoder."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.image import images
from bigmodel_cli.core.image.images import decode


def scene(width: int = 40, height: int = 24) -> Image.Image:
    """Smooth, so that lossy formats keep it: red grows rightwards, green downwards."""
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x * 255 // width, y * 255 // height, 0 * x + 80], 2).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def grey16() -> Image.Image:
    return Image.fromarray((np.arange(960).reshape(24, 40) * 64).astype(np.uint16))


KINDS: dict[str, tuple[bytes, int]] = {
    "jpeg": (encoded(scene(), "JPEG", quality=95), 16),
    "progressive": (encoded(scene(), "JPEG", quality=95, progressive=True), 16),
    "png": (encoded(scene(), "PNG"), 0),
    "interlaced-webp": (encoded(scene(), "WEBP", lossless=True), 0),
    "bmp": (encoded(scene(), "BMP"), 0),
    "ppm": (encoded(scene(), "PPM"), 0),
    "tiff": (encoded(scene(), "TIFF"), 0),
    "tiff-lzw": (encoded(scene(), "TIFF", compression="tiff_lzw"), 0),
    "palette-gif": (encoded(scene(), "GIF"), 32),
    "palette-png": (encoded(scene().quantize(256), "PNG"), 32),
    "cmyk-jpeg": (encoded(scene().convert("CMYK"), "JPEG", quality=95), 8),
}


@pytest.mark.parametrize("kind", KINDS)
def test_formats_and_modes(kind: str) -> None:
    raw, tolerance = KINDS[kind]
    got = decode(raw, kind, 3)
    assert got.dtype == torch.uint8 and got.shape == (3, 24, 40)
    assert (got.int() - pixels(scene()).int()).abs().max() <= tolerance
    assert decode(raw, kind, 1).shape == (1, 24, 40)


def test_grey_one_bit_and_sixteen_bits() -> None:
    grey = scene().convert("L")
    assert torch.equal(decode(encoded(grey, "PNG"), "g", 3), pixels(grey))
    bits = grey.convert("1")
    assert torch.equal(decode(encoded(bits, "PNG"), "1", 3), pixels(bits))
    high = torch.from_numpy(np.asarray(grey16()).astype(np.int32)) >> 8
    for kind in ("PNG", "TIFF"):  # clipping at 255, as a plain convert does, would give white
        assert torch.equal(decode(encoded(grey16(), kind), "16", 1)[0].int(), high.int())


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_over_white(mode: str) -> None:
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 4, 8))
    got = decode(encoded(image.convert(mode), "PNG"), mode, 3)
    assert int(got[:, :, :4].max()) == 0 and int(got[:, :, 4:].min()) == 255


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (6, 6), c) for c in ("red", "blue")]
    for kind in ("GIF", "WEBP"):
        raw = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
        assert decode(raw, kind, 3)[:, 3, 3].tolist() == [255, 0, 0]


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_rotation_gives_the_upright_image(kind: str, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import ImageOps

    if not fast:
        monkeypatch.setattr(images, "_torchcodec", lambda: None)
    for orientation in range(1, 9):
        tags = Image.Exif()
        tags[images.ORIENTATION] = orientation
        raw = encoded(scene(), kind, exif=tags)
        with Image.open(io.BytesIO(raw)) as image:
            expected = pixels(ImageOps.exif_transpose(image))
        assert torch.equal(decode(raw, kind, 3), expected), orientation


def noise(width: int, height: int, grain: int = 4) -> Image.Image:
    rows = np.random.default_rng(0).integers(0, 256, (height // grain, width // grain, 3), dtype=np.uint8)
    return Image.fromarray(rows).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.skipif(images._torchcodec() is None, reason="torchcodec is not installed")
@pytest.mark.parametrize("side", [None, 32, 96])
def test_both_decoders_give_the_same_pixels(side: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [
        encoded(noise(150, 110), "JPEG", quality=q, subsampling=s, progressive=p)
        for q in (40, 90) for s in (0, 1, 2) for p in (False, True)
    ]  # fmt: skip
    files.append(encoded(noise(150, 110).convert("L"), "JPEG"))
    fast = [decode(raw, "x", 3, side) for raw in files]
    monkeypatch.setattr(images, "_torchcodec", lambda: None)
    assert all(torch.equal(a, decode(raw, "x", 3, side)) for a, raw in zip(fast, files, strict=True))


@pytest.mark.parametrize("size", [(40, 24), (24, 40), (600, 400), (31, 31), (5, 3)])
def test_the_square_is_the_middle_of_the_image(size: tuple[int, int]) -> None:
    image = scene(*size)
    got = decode(encoded(image, "PNG"), "x", 3, 16)
    short = min(size)
    left, top = (size[0] - short) // 2, (size[1] - short) // 2
    expected = image.crop((left, top, left + short, top + short)).resize((16, 16), Image.Resampling.BILINEAR)
    assert got.shape == (3, 16, 16)
    assert (got.int() - pixels(expected).int()).abs().max() <= 1


def test_reduced_scale_decoding_is_close_to_the_whole() -> None:
    """A JPEG of 800x600 is decoded at a quarter for a square of 64, to 200x150: a PNG of the same pixels is not."""
    image = noise(800, 600, 50)
    jpeg = encoded(image, "JPEG", quality=98)
    with Image.open(io.BytesIO(jpeg)) as same:
        png = encoded(same, "PNG")
    difference = (decode(jpeg, "j", 3, 64).int() - decode(png, "p", 3, 64).int()).abs().float()
    assert 0 < difference.mean() < 4


def test_the_first_bytes_decide_not_the_name() -> None:
    assert torch.equal(decode(KINDS["png"][0], "photo.jpg", 3), pixels(scene()))


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "not an image"),
        (b"hello", "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        (KINDS["jpeg"][0][:300], "cannot decode"),
        (KINDS["png"][0][:60], "cannot decode"),
        (encoded(Image.new("1", (9000, 9000)), "PNG"), "9000x9000"),
        (encoded(Image.new("1", (20000, 20000)), "PNG"), "pixels"),
        (encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "floating-point"),
        (encoded(Image.fromarray(np.full((4, 4), 1 << 20, np.int32)), "TIFF"), "32-bit"),
        (encoded(scene(), "ICO", sizes=[(16, 16)]), "not an image"),  # a format that is not allowed
    ],
)
def test_what_is_no_image_is_named(raw: bytes, words: str) -> None:
    with pytest.raises(InputError) as caught:
        decode(raw, "some/file.png", 3, 32)
    assert caught.value.line.startswith("some/file.png") and words in caught.value.line
