"""The page of explained images: each beside what every method marks in it, and whether to believe that."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from torch import Tensor

from bigmodel_cli.insight import page
from bigmodel_cli.insight.explain.faithfulness import Faithfulness
from bigmodel_cli.insight.page import Section

LEGEND = (
    "Bright, warm colours mark what speaks for the answer, blue what speaks against it. Insertion: how much of the "
    "answer is back on average while the picture is uncovered from the brightest part on; deletion: how much is left "
    "while it is covered in that order; in brackets for random orders. Randomised: the rank correlation with the map "
    "of the same network with random weights, near 0 if the map shows what was learned."
)


@dataclass(frozen=True)
class Map:
    """What one method marks: the drawing (3,H,W) uint8, and the checks if they were made."""

    method: str
    drawing: Tensor
    checks: Faithfulness | None


@dataclass(frozen=True)
class ExplainedImage:
    """An image, its answer and runner-up as text, its maps, and the training images most like it, with a caption."""

    name: str
    answer: str
    picture: Tensor
    maps: Sequence[Map]
    nearest: Sequence[tuple[Tensor, str]] = field(default_factory=tuple)
    values: dict[str, Any] = field(default_factory=dict)


def write_page(path: Path, title: str, images: Sequence[ExplainedImage]) -> None:
    """Write the page.

    Raises:
        MachineError: it cannot be written.
    """
    parts: list[str | Section] = [page.note(LEGEND)]
    for image in images:
        cells = [(png(image.picture), "the picture")]
        cells += [(png(found.drawing), _caption(found)) for found in image.maps]
        body = f"<p><b>{escape(image.answer)}</b></p>{WIDE}{_gallery(cells)}"
        if image.nearest:
            body += "<h3>Most like it in the training data</h3>"
            body += page.gallery([(png(pixels), caption) for pixels, caption in image.nearest])
        parts.append(Section(image.name, body))
    page.write(path, title, parts)


WIDE = "<style>.wide { grid-template-columns: repeat(auto-fill, minmax(min(100%, 15rem), 1fr)) }</style>"


def _gallery(cells: Sequence[tuple[str, str]]) -> str:
    return page.gallery(cells).replace('class="gallery"', 'class="gallery wide"', 1)


def _caption(found: Map) -> str:
    checks = found.checks
    if checks is None:
        return found.method
    said = (
        f"{found.method}: insertion {checks.insertion:.2f} ({checks.random_insertion:.2f}), "
        f"deletion {checks.deletion:.2f} ({checks.random_deletion:.2f})"
    )
    if checks.randomised is not None:
        said += f", randomised {checks.randomised:.2f}"
    return said + (f". Do not rely on it: {'; '.join(checks.faults)}." if checks.faults else "")


def png(pixels: Tensor) -> str:
    """An <img> of (3,H,W) uint8 that holds its own data."""
    held = io.BytesIO()
    to_image(pixels).save(held, "JPEG", quality=88)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(held.getvalue()).decode("ascii")}">'


def to_image(pixels: Tensor) -> Any:
    from PIL import Image

    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())
