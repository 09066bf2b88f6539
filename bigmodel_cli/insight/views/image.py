"""Images on a page, as the data has them."""

from __future__ import annotations

import base64
import io
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from bigmodel_cli.core.errors import BigmodelError
from bigmodel_cli.core.registry import views
from bigmodel_cli.core.types import Batch

LARGEST, SMALL = 448, 96
"""The longest side in pixels of an image on a page, twice its width there for dense screens, and the longest that is
enlarged pixel by pixel."""


@views.register()
def image(batch: Batch, spec: Any, stored: bytes | None = None) -> str:
    """The image (1,C,H,W) uint8 of a raw batch, inside the page; as it is in its file `stored` where that has more."""
    pixels: Tensor = batch["image"][0]
    larger = None if stored is None or max(pixels.shape[1:]) >= LARGEST else _from_file(stored, spec)
    return embedded(pixels if larger is None or max(larger.shape[1:]) <= max(pixels.shape[1:]) else larger)


def _from_file(stored: bytes, spec: Any) -> Tensor | None:
    """The picture in a file, cropped as the model's are; None where it cannot be read, since a report goes on."""
    from bigmodel_cli.core.image.images import decode

    try:
        side = LARGEST if spec.square is not None else None
        return decode(stored, "a sample", 3 if spec.channels == 3 else 1, side, "bilinear", spec.value_range)
    except BigmodelError:
        return None


def embedded(pixels: Tensor, largest: int = LARGEST) -> str:
    """An <img> of `pixels` (C,H,W) uint8 that holds its own data."""
    height, width = pixels.shape[1:]
    kind = ' class="small"' if max(height, width) <= SMALL else ""
    return f'<img{kind} alt="" src="data:image/{data_of(pixels, largest)}">'


def data_of(pixels: Tensor, largest: int = LARGEST) -> str:
    """``png;base64,...``, or ``jpeg;base64,...`` of an image with a side over SMALL."""
    from PIL import Image

    height, width = pixels.shape[1:]
    if max(height, width) > largest:
        share = largest / max(height, width)
        size = (max(1, round(height * share)), max(1, round(width * share)))
        small = F.interpolate(pixels[None].float(), size, mode="bilinear", antialias=True)[0]
        pixels = small.round().clamp(0, 255).byte()
    rows = pixels[0] if pixels.shape[0] == 1 else pixels[:3].permute(1, 2, 0)
    held, form = io.BytesIO(), "png" if max(pixels.shape[1:]) <= SMALL else "jpeg"
    options = {"optimize": True} if form == "png" else {"quality": 85}
    Image.fromarray(rows.contiguous().cpu().numpy()).save(held, form, **options)
    return f"{form};base64,{base64.b64encode(held.getvalue()).decode('ascii')}"
