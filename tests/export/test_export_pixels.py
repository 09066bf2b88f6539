"""--with-preprocessing: plain images of any size go in, and the answers are those of the task's own preparation."""

from __future__ import annotations

import dataclasses
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from subjects import CLASSES, GREY, IMAGES, TEXTS, subject
from torch import nn
from torch.nn import functional as F

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.image.images import _square
from bigmodel_cli.core.preprocessing import raw_pixels as plain_pixels
from bigmodel_cli.core.types import ImageSpec
from bigmodel_cli.export import pixels
from bigmodel_cli.export.exported_model import RawImageTask, exported_model
from bigmodel_cli.export.folder import read_folder
from bigmodel_cli.export.pixels import FromPixels
from bigmodel_cli.export.proof import Proof, prove
from bigmodel_cli.tasks.image_classification import ImageClassification

SQUARE = ImageSpec(3, 28, 24, CLASSES, (0.5, 0.25, 0.125), (0.1, 0.2, 0.3), square=40, crop=0.8)
SIZES = [(28, 28), (40, 40), (57, 31), (31, 57), (20, 90), (301, 203)]
CASES = [("onnx", GREY), *((n, SQUARE) for n in ("onnx", "pt2", "openvino", "torchscript", "aoti"))]
CASES += [(name, spec) for name in ("executorch", "litert") for spec in (GREY, SQUARE)]


def image(height: int, width: int, channels: int) -> torch.Tensor:
    """Smooth and busy at once, as photos are: (1,C,H,W) uint8."""
    torch.manual_seed(height * width)
    coarse = torch.rand(1, channels, max(2, height // 6), max(2, width // 6))
    return (F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1) * 255).byte()


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("spec", [GREY, SQUARE], ids=["grey", "square"])
def test_the_graph_prepares_as_the_task_does(spec: ImageSpec, height: int, width: int) -> None:
    plain = image(height, width, spec.channels)
    raw = plain if spec.square is None else _square(plain[0], spec.square)[None]
    task = ImageClassification(spec, nn.CrossEntropyLoss(), lambda x: x)
    expected = task.prepare({"image": raw, "label": torch.zeros(1).long(), "index": torch.zeros(1)})["image"]
    got = FromPixels(nn.Identity(), spec)(plain.permute(0, 2, 3, 1))
    levels = ((got - expected) * torch.tensor(spec.std).view(1, -1, 1, 1) * 255).abs()
    if spec.square is None:
        assert levels.max() < 1e-3
    else:  # uint8 in training: where the integers round otherwise, a pixel is a grey level off
        assert levels.max() < 2 and levels.mean() < 0.3


def made(name: str, folder: Path, spec: ImageSpec, **more: Any) -> Proof:
    what = dataclasses.replace(subject(spec=spec, sizes=(4, 2)), pixels=True)
    return prove(what, name, folder / "out", seconds=0, **more)


@pytest.mark.parametrize(("name", "spec"), CASES, ids=[f"{n}-{s.square}" for n, s in CASES])
def test_a_format_takes_plain_images(name: str, spec: ImageSpec, tmp_path: Path) -> None:
    if name == "aoti" and not os.environ.get("BIGMODEL_SOAK"):
        pytest.skip("compiles for half a minute; BIGMODEL_SOAK=1")
    package = {"onnx": "onnxruntime", "openvino": "openvino", "executorch": "executorch", "litert": "litert_torch"}
    pytest.importorskip(package.get(name, "torch"))
    found = made(name, tmp_path, spec)
    assert found.passed and found.largest_difference <= 1e-4 and found.example, found.failed
    folder = read_folder(tmp_path / "out")
    assert folder.takes_pixels and folder.preprocess["layout"] == "NHWC uint8"
    trust = folder.entry.meta.get("check") is None
    run = folder.open(trust)
    what = subject(spec=spec, sizes=(4, 2))
    model, task = exported_model(folder, what.task, trust)  # as eval and predict call it
    with torch.inference_mode():
        for batch in what.raw:
            expected = what.model(what.task.prepare(batch)["image"])
            torch.testing.assert_close(model(task.prepare(batch)["image"]), expected, atol=1e-4, rtol=0)
    if name in ("executorch", "litert"):
        assert found.other_sizes is None and folder.preprocess["size"] == dict(
            zip(("height", "width"), (28, 28) if spec is GREY else (40, 40), strict=True)
        )
        return
    assert found.other_sizes and found.other_sizes["equal_answers"] == 1 and folder.preprocess["size"] == "any"
    for height, width in ((28, 28), (61, 33)):
        x = np.zeros((3, height, width, spec.channels), np.uint8)
        assert run(x).shape == (3, 5)


def test_a_format_of_one_size_is_given_that() -> None:
    raw = {**subject(spec=GREY, sizes=(1,)).raw[0], "image": image(61, 40, 1)}
    given = RawImageTask(subject(spec=GREY).task, (30, 20)).prepare(raw)["image"]
    assert given.shape == (1, 30, 20, 1) and given.dtype == torch.uint8
    buffer = io.BytesIO()
    Image.fromarray(raw["image"][0, 0].numpy()).save(buffer, "PNG")
    served = torch.from_numpy(plain_pixels(buffer.getvalue(), "x", GREY, (30, 20)).copy())
    assert served.shape == (30, 20, 1) and (served.int() - given[0].int()).abs().max() <= 1


def test_a_resize_that_is_another_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nearest(x: torch.Tensor, dim: int, size: Any, start: Any, length: Any, out: int, *_: Any) -> torch.Tensor:
        place = (torch.arange(out) * (length / out)).floor()
        return (torch.arange(x.shape[dim]) == place[:, None]).float()

    monkeypatch.setattr(pixels, "_resize", nearest)
    found = made("pt2", tmp_path, GREY)
    assert not found.passed and "images of other sizes" in found.failed[0] and list(tmp_path.iterdir()) == []
    assert found.largest_difference <= 1e-4, "the data's own size needs no resize"


def test_where_it_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="weights and no graph"):
        made("safetensors", tmp_path, IMAGES)
    index = torch.arange(2)
    raw = [{"tokens": torch.ones(2, 9).long(), "label": index, "index": index}]
    text = dataclasses.replace(subject("text-cnn", TEXTS, raw=raw, width=8, filters=4), pixels=True)
    with pytest.raises(InputError, match="for images"):
        prove(text, "pt2", tmp_path / "out")
    raw = [{"image": torch.zeros(2, 3, 28, 28).byte(), "label": index, "index": index}]
    colour = dataclasses.replace(subject(spec=GREY, raw=raw), pixels=True)
    with pytest.raises(InputError, match="the data has 3 channels; the model 1"):
        prove(colour, "pt2", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
