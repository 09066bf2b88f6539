"""An exported model's inputs, made without torch, are those that training and ``predict`` make."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.image.images import decode
from bigmodel_cli.core.preprocessing import prepare
from bigmodel_cli.core.specs import ImageSpec
from bigmodel_cli.tasks.image_classification import ImageClassification

CLASSES = ("a", "b")
SPECS = {
    "as it is": ImageSpec(1, 28, 28, CLASSES, (0.1307,), (0.3081,)),
    "pressed": ImageSpec(3, 24, 40, CLASSES, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)),
    "square": ImageSpec(3, 48, 48, CLASSES, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), square=48),
    "cropped": ImageSpec(3, 56, 56, CLASSES, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), square=64, crop=0.875),
    "cropped, resized": ImageSpec(1, 32, 32, CLASSES, (0.5,), (0.2,), square=64, crop=0.875),
    "plain": ImageSpec(3, 16, 16, CLASSES),
    "of a range": ImageSpec(1, 28, 28, CLASSES, value_range=(900.0, 60000.0)),
}


def photo(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Smooth hills with some noise, as photos have, and nothing a resize could hide behind."""
    y, x = np.mgrid[0:height, 0:width] / 9
    waves = np.stack([np.sin(x + y), np.cos(x - y), np.sin(x * 2)], 2) * 90 + 128
    noise = np.random.default_rng(0).normal(0, 12, waves.shape)
    return Image.fromarray((waves + noise).clip(0, 255).astype(np.uint8)).convert(mode)


def file(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    return file(photo(90, 61), "JPEG", exif=exif, quality=95)


def animated() -> bytes:
    frames = [photo(60, 50).rotate(90 * i).convert("P") for i in range(3)]
    return file(frames[0], "GIF", save_all=True, append_images=frames[1:])


IMAGES = {
    "small": file(photo(28, 28, "L"), "PNG"),
    "wide": file(photo(150, 97), "PNG"),
    "tall palette": file(photo(97, 150).convert("P"), "GIF"),
    "transparent": file(photo(80, 70, "RGBA"), "WEBP", lossless=True),
    "turned": turned(6),
    "mirrored": turned(5),
    "large": file(photo(1200, 900), "JPEG", quality=95),
    "16 bit": file(Image.fromarray((np.mgrid[0:70, 0:50][0] * 900).astype(np.uint16)), "PNG"),
    "CMYK": file(photo(70, 60, "CMYK"), "JPEG", quality=95),
    "palette with transparency": file(photo(70, 60).quantize(16), "PNG", transparency=3),
    "grey with alpha": file(photo(50, 80, "RGBA").convert("LA"), "PNG"),
    "1 bit": file(photo(64, 64, "L").convert("1"), "PNG"),
    "turned 16 bit": file(photo(90, 61, "L").convert("I;16"), "TIFF", tiffinfo={274: 6}),
    "animated": animated(),
}


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_the_same_input_as_with_torch(spec: ImageSpec, image: bytes) -> None:
    task = ImageClassification(spec, lambda x, y: x, lambda x, *_: x)
    pixels = decode(image, "x", spec.channels, spec.square, value_range=spec.value_range)
    wanted = task.prepare({"image": pixels[None], "label": torch.zeros(1).long()})["image"][0].numpy()
    got = prepare(image, "x", task.preprocessing())
    assert got.dtype == np.float32 and got.shape == wanted.shape == (spec.channels, spec.height, spec.width)
    levels = np.abs(got - wanted) * (np.array(spec.std).reshape(-1, 1, 1) * 255 if spec.std else 1)
    # Without the square, which torch resizes in whole grey levels, there is nothing to round.
    steep = 2 if image is IMAGES["CMYK"] else 1  # its conversion saturates: edges, where both round twice
    assert levels.max() <= (steep + 0.01 if spec.square else 0.01)
    assert levels.mean() <= 0.3


def test_a_image_that_is_none() -> None:
    how = ImageClassification(SPECS["square"], lambda x, y: x, lambda x, *_: x).preprocessing()
    for raw, what in ((b"", "not an image"), (b"GIF89a", "cannot decode|not an image"), (IMAGES["wide"], "pixels")):
        with pytest.raises(InputError, match=f"x: .*({what})"):
            prepare(raw, "x", how, most=150 * 97 - 1)


@pytest.mark.parametrize("image", ["large", "wide", "tall palette", "CMYK", "grey with alpha", "transparent"])
def test_a_damaged_image_is_refused_by_both(image: str) -> None:
    how = ImageClassification(SPECS["square"], lambda x, y: x, lambda x, *_: x).preprocessing()
    raw = IMAGES[image][: len(IMAGES[image]) // 2]
    for read in (lambda: decode(raw, "x", 3, 48), lambda: prepare(raw, "x", how)):
        with pytest.raises(InputError, match=r"^x: "):
            read()


def test_without_torch() -> None:
    program = (
        "import sys, io; from PIL import Image; from bigmodel_cli.core.preprocessing import prepare; b = io.BytesIO()"
    )
    program += "; Image.new('L', (9, 9)).save(b, 'PNG')"
    program += "; how = dict(mode='L', resize=dict(width=4, height=5), scale=1/255, mean=[0.5], std=[0.5])"
    program += "; print(prepare(b.getvalue(), 'x', how).shape, 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout == "(1, 5, 4) False\n", done.stderr
