"""A small export folder in memory, written without training: the start of hostile ones."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import torch

from bigmodel_cli.core.registry import models, tasks
from bigmodel_cli.core.types import ImageSpec
from bigmodel_cli.export.proof import prove
from bigmodel_cli.export.subject import Subject

SPEC = ImageSpec(1, 4, 4, ("a", "b"), (0.5,), (0.25,))


@functools.cache
def onnx_folder() -> dict[str, bytes]:
    """The files of an ONNX export of a perceptron, by name."""
    task = tasks.get("image_classification")(SPEC, torch.nn.CrossEntropyLoss(reduction="none"), None)
    index = torch.arange(2)
    raw = {"image": torch.zeros(2, 1, 4, 4, dtype=torch.uint8), "label": index, "index": index}
    about = {
        "arch": "perceptron", "arch_args": {}, "task": "image_classification",
        "input": {"kind": "image", **SPEC.to_dict()}, "checkpoint": {"file": "best.pt"},
        "recipe": {"model": {"name": "perceptron"}, "data": {"name": "digits", "dir": None}},
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="bigmodel-") as place:
        out = Path(place) / "out"
        assert prove(Subject(models.get("perceptron")(SPEC).eval(), task, [raw], about), "onnx", out, seconds=0).passed
        return {file.name: file.read_bytes() for file in out.iterdir()}
