"""``example.py``: about thirty lines that run an export on one sample, with only the runtime of its format."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bigmodel_cli.core.errors import MachineError
from bigmodel_cli.core.registry import Entry
from bigmodel_cli.export import folder as layout
from bigmodel_cli.export.example_text import sample_text, text_expected, text_script
from bigmodel_cli.export.folder import Run
from bigmodel_cli.export.resized_samples import SCALES, resized_sample

if TYPE_CHECKING:
    from bigmodel_cli.export.subject import Subject

LIMIT = 300  # seconds
APART = 1e-3  # of a probability: the image is resized by Pillow here, by torch in training
HEAD = '''\
"""What this model says of an image: python example.py IMAGE. Needs {needs}."""

import json
import sys
from pathlib import Path

import numpy as np
{imports}
from PIL import Image, ImageOps

here = Path(__file__).resolve().parent
labels = json.loads((here / "labels.json").read_text(encoding="utf-8"))
steps = json.loads((here / "preprocess.json").read_text(encoding="utf-8"))
'''
RESIZE = """

def resized(x, size):  # (height, width, channels) float32: bilinear, antialiased
    shape = size["width"], size["height"]
    planes = [Image.fromarray(plane).resize(shape, Image.Resampling.BILINEAR) for plane in np.moveaxis(x, -1, 0)]
    return np.stack([np.asarray(plane) for plane in planes], axis=-1)


"""
READ = """\
image = ImageOps.exif_transpose(Image.open(sys.argv[1]))
if image.has_transparency_data:
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
image = image.convert(steps["mode"])
"""
PIXELS = "x = np.asarray(image, np.float32).reshape(image.height, image.width, -1)\n"
SQUARE = """\
side = min(x.shape[:2])  # the square in the middle
top, left = (x.shape[0] - side) // 2, (x.shape[1] - side) // 2
x = np.round(resized(x[top : top + side, left : left + side], steps["resize_square"]))
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
CONTENTS = '''\
"""What this folder holds: python example.py. Needs {needs}."""

from pathlib import Path

{imports}

here = Path(__file__).resolve().parent
{run}
'''
PLAIN = "x = np.asarray(image).reshape(1, image.height, image.width, -1)  # the rest is in the graph\n"
ANSWER = """
probability = np.exp(logits[0] - logits[0].max())
probability /= probability.sum()
for k in probability.argsort()[::-1][:5]:
    print(f"{probability[k]:8.4%}  {labels[k]}")
"""


def example_script(entry: Entry, task: Any, preprocess: Mapping[str, Any]) -> str | None:
    """The program for a format and a task; None if there is none."""
    own, kind = entry.meta["runtime"], task.spec.kind
    if not own.answers:
        return CONTENTS.format(needs=", ".join(own.needs), imports=own.imports, run=own.run)
    if kind == "text" and len(task.inputs) == 1:
        return text_script(own, preprocess, bool(task.spec.classes), ANSWER)
    if kind != "image":
        return None
    packages = [p for p in own.needs if p not in ("numpy", "pillow")]
    parts = [HEAD.format(needs=", ".join([*packages, "numpy and pillow"]), imports=own.imports)]
    if "in_the_graph" in preprocess:
        return "".join([*parts, "\n", READ, *_fitted(preprocess), PLAIN, "\n", own.run, "\n", ANSWER])
    if {"resize", "resize_square"} & set(preprocess):
        parts.append(RESIZE)
    parts += [READ, PIXELS]
    parts += [SQUARE] if "resize_square" in preprocess else []
    parts += [CROP] if "crop" in preprocess else []
    parts += ['x = resized(x, steps["resize"])\n'] if "resize" in preprocess else []
    return "".join([*parts, NORMALISE, "\n", own.run, "\n", ANSWER])


def _fitted(preprocess: Mapping[str, Any]) -> list[str]:
    """Lines that resize the image to the one size that the format accepts."""
    if preprocess["size"] == "any":
        return []
    call = "ImageOps.fit(image, size" if "resize_square" in preprocess["in_the_graph"] else "image.resize(size"
    size = 'size = steps["size"]["width"], steps["size"]["height"]\n'
    return [size, f"image = {call}, Image.Resampling.BILINEAR)\n"]


def run_example(entry: Entry, subject: Subject, folder: Path, run: Run) -> dict[str, Any] | None:
    """Run the folder's example on a real sample, without access to bigmodel (or to torch, unless it is needed).

    Returns its top prediction; ``failed`` has a line if it differs from what was expected. None if there is no example.
    """
    if not (folder / layout.EXAMPLE).exists():
        return None
    own, text = entry.meta["runtime"], subject.task.spec.kind == "text"
    with tempfile.TemporaryDirectory(prefix="bigmodel-") as place:
        arguments = []
        if own.answers:  # an image that is larger, and not of the model's shape: it must be prepared
            arguments = [sample_text(subject) if text else str(resized_sample(subject, 0, SCALES[0], Path(place)))]
        done = _alone(folder / layout.EXAMPLE, arguments, Path(place), "torch" in own.needs)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no word"])[-1]
            return {"answer": None, "failed": [f"example.py ended with {done.returncode}: {last[:150]}"]}
        if not own.answers:
            return {"answer": done.stdout.splitlines()[0] if done.stdout else "", "failed": []}
        if text:
            logits, names = text_expected(subject, run, arguments[0])
        else:
            logits, names = _expected(entry, subject, run, Path(arguments[0])), subject.task.spec.classes
    return _held(done.stdout, logits[0].double().softmax(0), names)


def _expected(entry: Entry, subject: Subject, run: Run, file: Path) -> torch.Tensor:
    """The logits (1,K) for the image in `file`, preprocessed by bigmodel.

    For a format that takes raw images of one size, Pillow resizes them and the export itself is the reference.
    """
    raw = subject.task.read(file)
    if not subject.pixels:
        batch = subject.task.prepare(raw)
        return torch.from_numpy(run(*(batch[name].contiguous().numpy() for name in subject.task.inputs)))
    if entry.meta.get("sizes") == "fixed":
        from PIL import Image, ImageOps

        height, width = subject.given[0][0].shape[1:3]
        fit = Image.Image.resize if subject.task.spec.square is None else ImageOps.fit
        image = fit(
            Image.open(file).convert("L" if subject.task.spec.channels == 1 else "RGB"),
            (width, height),
            Image.Resampling.BILINEAR,
        )
        return torch.from_numpy(run(np.array(image).reshape(1, height, width, -1)))
    with torch.inference_mode():
        return subject.model(subject.task.prepare(raw)["image"])  # type: ignore[no-any-return]


def _held(text: str, expected: torch.Tensor, classes: tuple[str, ...]) -> dict[str, Any]:
    """Compare the lines ``12.3456%  class`` with the expected probabilities."""
    said = [line.partition("%  ") for line in text.split("\n") if line.strip()]
    if not said:
        return {"answer": None, "failed": ["example.py said nothing"]}
    failed = []
    for percent, _, name in said:
        if name not in classes:
            failed.append(f"example.py names a class that is not there: {name[:60]}")
        elif (apart := abs(float(percent) / 100 - float(expected[classes.index(name)]))) > APART:
            failed.append(f"example.py is off by {apart:.2g} in the probability of {name}")
    return {"answer": said[0][2], "probability": said[0][0].strip() + "%", "failed": failed[:1]}


def _alone(script: Path, arguments: list[str], place: Path, torch_too: bool) -> subprocess.CompletedProcess[str]:
    """Run `script` in a Python that cannot import bigmodel, telemetry, or (unless `torch_too`) torch."""
    hidden = ["bigmodel_cli", "openvino_telemetry"] + ([] if torch_too else ["torch"])
    program = (
        f"import runpy, sys\nsys.modules.update(dict.fromkeys({json.dumps(hidden)}))\n"
        "sys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-P", "-c", program, str(script.resolve()), *arguments]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    try:
        return subprocess.run(
            command, cwd=place, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=LIMIT
        )
    except subprocess.TimeoutExpired:
        raise MachineError(f"example.py did not end in {LIMIT} s", hint="try again on a quieter machine") from None
