"""example.py on real files of each format and mode, its manners, and the ONNX file that old runtimes read."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from subjects import CLASSES, GREY, IMAGES, subject

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.types import ImageSpec
from bigmodel_cli.data.image.files import ImageFiles
from bigmodel_cli.data.image.listing import file_item
from bigmodel_cli.data.subset import Subset
from bigmodel_cli.export import example_image
from bigmodel_cli.export import onnx as onnx_format
from bigmodel_cli.export.folder import read_folder
from bigmodel_cli.export.proof import prove
from bigmodel_cli.export.runtime import Runtime
from bigmodel_cli.export.val_files import val_files

pytest.importorskip("onnxruntime")
SQUARE = ImageSpec(1, 28, 28, CLASSES, (0.5,), (0.2,), square=32, crop=0.875)
PHOTO = ImageSpec(3, 64, 64, CLASSES, (0.5,) * 3, (0.2,) * 3, square=73, crop=64 / 73)
DRAW = np.random.default_rng(0)


def written(folder: Path) -> list[Path]:
    """One picture, smooth and noisy, in the formats and modes of real folders."""
    y, x = np.mgrid[0:60, 0:80] / 7
    grey = (np.sin(x + y) * 90 + 128 + DRAW.normal(0, 8, x.shape)).clip(0, 255)
    plain = Image.fromarray(grey.astype(np.uint8))
    colour = Image.merge("RGB", (plain, plain.rotate(90, expand=False), plain.rotate(180)))
    turned = Image.Exif()
    turned[274] = 6
    transparent = colour.copy()
    transparent.putalpha(plain)
    Image.fromarray((grey * 257).astype(np.uint16)).save(folder / "sixteen.png")
    plain.save(folder / "grey.png")
    colour.save(folder / "photo.jpg", exif=turned, quality=95)
    colour.resize((400, 300)).convert("CMYK").save(folder / "print.jpg", quality=95)
    transparent.save(folder / "over.png")
    transparent.save(folder / "over.webp", lossless=True)
    colour.convert("P").save(folder / "palette.gif")
    Image.fromarray((grey * 257).astype(np.uint16)).save(folder / "sixteen.tiff")
    return sorted(folder.iterdir())


@pytest.fixture
def source(tmp_path: Path) -> ImageFiles:
    (tmp_path / "files").mkdir()
    items = [dataclasses.replace(file_item(str(f), f.name), label=0) for f in written(tmp_path / "files")]
    return ImageFiles(items, 32, 1, "val", False, "off")


def test_one_file_of_each_format_and_mode(source: ImageFiles) -> None:
    names = {name for name, _ in val_files(source)}
    assert len(names) == len(source) == 8
    assert {name for name, _ in val_files(Subset(source, torch.tensor([0, 3])))} == {source.name(0), source.name(3)}


def test_the_example_reads_what_training_reads(source: ImageFiles, tmp_path: Path) -> None:
    index = torch.arange(4)
    what = dataclasses.replace(
        subject("cnn", SQUARE, raw=[source.gather(index)]), files=val_files(source)
    )  # fmt: skip
    found = prove(what, "onnx", tmp_path / "out", seconds=0)
    assert found.passed and found.example and found.example["samples"] == 9, found.failed


def test_the_example_resizes_as_training_does(tmp_path: Path) -> None:
    """In whole numbers, as Pillow and torch do: in fractions a fifth of the pixels were off by one, and a network that
    magnifies that was not exported."""
    task = subject("cnn", PHOTO, (2,)).task
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 90, 3), np.uint8)).save(tmp_path / "noise.png")
    steps = task.preprocessing()
    script = example_image.image_example().script(Runtime(("numpy",), "", "given = x"), task, steps)
    assert script is not None
    reads = script.partition('"preprocess.json").read_text(encoding="utf-8"))\n')[2].partition("given = x")[0]
    file = SimpleNamespace(argv=["example.py", str(tmp_path / "noise.png")])
    scope: dict[str, Any] = {"np": np, "Image": Image, "ImageOps": ImageOps, "sys": file, "steps": steps}
    exec(reads, scope)
    ((_, raw),) = task.read_file(tmp_path / "noise.png")
    apart = np.abs(scope["x"] - task.prepare(raw)["image"].numpy())
    assert (apart > 1e-4).mean() < 0.03


def test_reading_16_bits_wrongly_fails_the_export(
    source: ImageFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: Pillow's own conversion clips 16-bit grey to white, as the example once did."""
    monkeypatch.setattr(example_image, "READ", example_image.READ.replace('image.mode[0] in "IF"', "False"))
    sixteen = [(name, raw) for name, raw in val_files(source) if name == "sixteen.png"]
    what = dataclasses.replace(subject("cnn", SQUARE, raw=[source.gather(torch.arange(2))]), files=sixteen)
    found = prove(what, "onnx", tmp_path / "out", seconds=0)
    assert not found.passed and "sixteen.png" in found.failed[0], found.failed


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shipped")
    assert prove(subject("perceptron", GREY, (2,)), "onnx", folder / "out", seconds=0).passed
    Image.new("L", (28, 28), 90).save(folder / "x.png")
    return folder


def ran(shipped: Path, *arguments: Any, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "out/example.py", *map(str, arguments)]
    return subprocess.run(
        command, cwd=shipped, capture_output=True, text=True, encoding="utf-8", env={**os.environ, **environment}
    )


def test_its_manners(shipped: Path, tmp_path: Path) -> None:
    (shipped / "text.png").write_text("no image")
    whole = (shipped / "x.png").read_bytes()
    (shipped / "cut.png").write_bytes(whole[: len(whole) // 2])
    without, missing = ran(shipped), ran(shipped, "none.png")
    for done in (without, missing, ran(shipped, "text.png"), ran(shipped, "cut.png"), ran(shipped, ".")):
        assert done.returncode == 1 and "Traceback" not in done.stderr and done.stderr and not done.stdout
    assert "python example.py IMAGE. Needs Python 3.11, onnxruntime>=1.15, numpy, pillow>=10.1" in without.stderr
    assert "none.png" in missing.stderr
    narrow = ran(shipped, "x.png", PYTHONIOENCODING="ascii")  # one class is called één
    assert narrow.returncode == 0 and "\\xe9\\xe9n" in narrow.stdout


def test_it_checks_the_files_that_it_reads(shipped: Path) -> None:
    labels = shipped / "out/labels.json"
    whole = labels.read_bytes()
    try:
        labels.write_text(json.dumps(json.loads(whole)[::-1]))
        assert ran(shipped, "x.png").stderr == "labels.json: not the file that was exported\n"
        labels.unlink()
        assert "copy the whole folder" in ran(shipped, "x.png").stderr
    finally:
        labels.write_bytes(whole)
    assert ran(shipped, "x.png").returncode == 0


@pytest.mark.parametrize(("opset", "version"), [(18, 8), (20, 9), (21, 10)])
def test_the_lowest_version_that_has_the_opset(opset: int, version: int, tmp_path: Path) -> None:
    """https://github.com/onnx/onnx/blob/main/docs/Versioning.md has the table."""
    import onnx

    found = prove(subject("cnn", IMAGES, (3,)), "onnx", tmp_path / "out", seconds=0, options={"opset": opset})
    proto = onnx.load(tmp_path / "out/model.onnx")
    assert found.passed and (proto.ir_version, proto.opset_import[0].version) == (version, opset)
    assert {entry.key for entry in proto.metadata_props} >= {"arch", "classes", "preprocess"}


def test_an_opset_that_nobody_writes_is_refused(tmp_path: Path) -> None:
    """The exporter would leave the model in its own opset, without an error."""
    with pytest.raises(InputError, match="opset = 99: this model can be written in opset 18"):
        prove(subject("mlp", GREY, (3,), hidden=[4]), "onnx", tmp_path / "out", seconds=0, options={"opset": 99})
    assert not (tmp_path / "out").exists()


def test_a_large_model_keeps_its_weights_in_a_second_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one beyond 2 GB must, which a protobuf cannot hold."""
    monkeypatch.setattr(onnx_format, "MOST_IN_ONE_FILE", 1000)
    found = prove(subject("mlp", GREY, (3,), hidden=[64]), "onnx", tmp_path / "out", seconds=0)
    data = tmp_path / "out/model.onnx.data"
    assert found.passed and data.stat().st_size > 100_000 and "model.onnx.data" in found.files
    assert (tmp_path / "out/model.onnx").stat().st_size < 20_000
    folder = read_folder(tmp_path / "out")
    before = folder.open()(np.zeros((1, 1, 28, 28), np.float32))
    assert before.shape == (1, len(CLASSES))
