"""The parts of ``example.py`` that read and prepare an image, and its expected output. Shapes: K classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bigmodel_cli.core.image.images import decode_plain
from bigmodel_cli.core.registry import Entry, examples
from bigmodel_cli.core.tasks import Predicts
from bigmodel_cli.export.example import STANDARD, START, Example, answer_script
from bigmodel_cli.export.folder import Run
from bigmodel_cli.export.resized_samples import SCALES, resized_sample
from bigmodel_cli.export.runtime import Runtime

if TYPE_CHECKING:
    from bigmodel_cli.export.subject import Subject

HEAD = '''\
"""Classify an image with this model: python example.py IMAGE. Needs {needs}."""

{standard}

import numpy as np
{imports}
from PIL import Image, ImageOps

here = Path(__file__).resolve().parent
if len(sys.argv) != 2:
    sys.exit(__doc__)
{start}
labels = json.loads((here / "labels.json").read_text(encoding="utf-8"))
steps = json.loads((here / "preprocess.json").read_text(encoding="utf-8"))
'''
RESIZE = """

def resized(x, size):  # (height, width, channels) float32, antialiased
    shape = size["width"], size["height"]
    filter = Image.Resampling[size["interpolation"].partition(",")[0].upper()]
    planes = [Image.fromarray(plane).resize(shape, filter) for plane in np.moveaxis(x, -1, 0)]
    return np.stack([np.asarray(plane) for plane in planes], axis=-1).clip(0, 255)


"""
READ = """\
try:
    image = Image.open(sys.argv[1])
{draft}    image = ImageOps.exif_transpose(image)
except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
    sys.exit(f"{sys.argv[1]}: {error}")
if image.mode[0] in "IF":  # more than 8 bits
    values = np.asarray(image)
{wide}if image.has_transparency_data:
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
image = image.convert(steps["mode"])
"""
HIGH_BYTE = """\
    if image.mode == "F" or values.min() < 0 or values.max() > 0xFFFF:
        sys.exit(f"{sys.argv[1]}: pixels of an unknown range")
    image = Image.fromarray((values >> 8).astype(np.uint8))
"""
VALUE_RANGE = """\
    low, high = steps["value_range"]  # black and white
    if np.isnan(values).any():
        sys.exit(f"{sys.argv[1]}: pixels that are no numbers")
    values = np.rint(((values.astype(np.float64) - low) * (255 / (high - low))).clip(0, 255))
    image = Image.fromarray(values.astype(np.uint8))
"""
DRAFT = """\
    if image.format == "JPEG" and image.mode in ("RGB", "L"):  # a large one, at half its size or less
        image.draft(image.mode, [2 * steps["resize_square"][side] for side in ("width", "height")])
"""
PIXELS = "x = np.asarray(image, np.float32).reshape(image.height, image.width, -1)\n"
SQUARE = """\
side, short = steps["resize_square"]["width"], min(image.size)
left, top = ((length - short) // 2 for length in image.size)  # the centred square
image = image.crop((left, top, left + short, top + short)).resize((side, side), Image.Resampling.BILINEAR)
"""
BICUBIC_SQUARE = """\
side, short = steps["resize_square"]["width"], min(image.size)  # resized, then cut
wide, tall = (side * length // short for length in image.size)
left, top = round((wide - side) / 2), round((tall - side) / 2)
across, down = image.width / wide, image.height / tall
box = left * across, top * down, (left + side) * across, (top + side) * down
image = image.resize((side, side), Image.Resampling.BICUBIC, box=box)
"""
CROP = """\
crop = steps["crop"]
top, left = (x.shape[0] - crop["height"]) // 2, (x.shape[1] - crop["width"]) // 2
x = x[top : top + crop["height"], left : left + crop["width"]]
"""
NORMALISE = """\
x = (x * steps["scale"] - np.array(steps["mean"])) / np.array(steps["std"])
x = np.ascontiguousarray(x.transpose(2, 0, 1)[None], dtype=np.float32)  # (1, channels, height, width)
"""
PLAIN = "x = np.asarray(image).reshape(1, image.height, image.width, -1)  # the graph does the rest\n"


@examples.register("image")
def image_example() -> Example:
    """The classes of an image."""
    return Example(_script, _samples, _expected)


def _script(own: Runtime, task: Any, preprocess: Mapping[str, Any]) -> str:
    needs = ", ".join(["Python 3.11", *(n for n in own.needs if "numpy" not in n), "numpy", "pillow>=10.1"])
    parts = [HEAD.format(needs=needs, standard="\n".join(STANDARD), imports=own.imports, start=START)]
    square = preprocess.get("resize_square", {})
    bicubic = square.get("interpolation", "").startswith("bicubic")
    read = READ.replace("{draft}", DRAFT if square and not bicubic else "")
    read = read.replace("{wide}", VALUE_RANGE if "value_range" in preprocess else HIGH_BYTE)
    if "in_the_graph" in preprocess:
        return "".join([*parts, "\n", read, *_fitted(preprocess), PLAIN, "\n", own.run, "\n", answer_script(task)])
    parts += [RESIZE] if "resize" in preprocess else []
    parts += [read, *([BICUBIC_SQUARE if bicubic else SQUARE] if square else []), PIXELS]
    parts += [CROP] if "crop" in preprocess else []
    parts += ['x = resized(x, steps["resize"])\n'] if "resize" in preprocess else []
    return "".join([*parts, NORMALISE, "\n", own.run, "\n", answer_script(task)])


def _fitted(preprocess: Mapping[str, Any]) -> list[str]:
    """Lines that resize the image to the fixed input size of the format."""
    if preprocess["size"] == "any":
        return []
    inside = preprocess["in_the_graph"]
    call = "ImageOps.fit(image, size" if "resize_square" in inside else "image.resize(size"
    how = inside.get("resize_square", inside.get("resize", {}))["interpolation"].partition(",")[0].upper()
    size = 'size = steps["size"]["width"], steps["size"]["height"]\n'
    return [size, f"image = {call}, Image.Resampling.{how})\n"]


def _samples(subject: Subject, place: Path) -> list[str]:
    """Real files of each format and mode, and an image of another size than the model's input."""
    files = [place / f"{number}-{Path(name).name[-60:]}" for number, (name, _) in enumerate(subject.files)]
    for file, (_, raw) in zip(files, subject.files, strict=True):
        file.write_bytes(raw)
    return [str(resized_sample(subject, 0, SCALES[0], place)), *map(str, files)]


def _expected(entry: Entry, subject: Subject, run: Run, file: str) -> tuple[torch.Tensor, tuple[str, ...]]:
    return _logits(entry, subject, run, Path(file)), subject.task.spec.classes


def _logits(entry: Entry, subject: Subject, run: Run, file: Path) -> torch.Tensor:
    """The logits (1,K) for the image in `file`, as bigmodel reads it.

    A format with preprocessing in the graph and a fixed input size gets images resized by Pillow. Then the expected
    output comes from the export itself.
    """
    assert isinstance(subject.task, Predicts)
    ((_, raw),) = subject.task.read_file(file)
    if not subject.pixels:
        batch = subject.task.prepare(raw)
        return torch.from_numpy(run(*(batch[name].contiguous().numpy() for name in subject.task.inputs)))
    if entry.meta.get("sizes") == "fixed":
        from PIL import Image, ImageOps

        spec, (height, width) = subject.task.spec, subject.given[0][0].shape[1:3]
        fit = Image.Image.resize if spec.square is None else ImageOps.fit
        plain = decode_plain(file.read_bytes(), str(file), spec.channels, value_range=spec.value_range)
        image = fit(plain, (width, height), Image.Resampling[spec.interpolation.upper()])
        return torch.from_numpy(run(np.array(image).reshape(1, height, width, -1)))
    with torch.inference_mode():
        return subject.model(subject.task.prepare(raw)["image"])  # type: ignore[no-any-return]
