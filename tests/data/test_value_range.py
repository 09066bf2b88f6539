"""Images of more than 8 bits keep what tells them apart, from the files to the export's example.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.image.deep_images import eight_bits
from bigmodel_cli.core.image.images import decode
from bigmodel_cli.core.preprocessing import prepare
from bigmodel_cli.core.recipe import DataSection
from bigmodel_cli.core.specs import ImageSpec
from bigmodel_cli.core.types import Source
from bigmodel_cli.engine.build.data import load_data

BASE, STEP = 30_000, 3  # the values of a sensor that uses a narrow band, all within 300 of 65,536 levels


def band(folder: Path, kind: str = "uint16", base: float = BASE, step: float = STEP, suffix: str = ".png") -> Path:
    """Bright and dark noise around `base`, in class folders of ten images each."""
    draw = np.random.default_rng(0)
    for label, centre in (("bright", 70), ("dark", 30)):
        (folder / label).mkdir(parents=True)
        for i in range(10):
            levels = base + step * (centre + draw.integers(-20, 20, (12, 12)))
            Image.fromarray(levels.astype(kind)).save(folder / label / f"{i}{suffix}")
    return folder


def opened(folder: Path, like: ImageSpec | None = None, fits: bool = False, **options: Any) -> Any:
    section = DataSection(name="image_folder", path=str(folder), cache="off", channels=1, **options)
    return load_data(section, like, fits=fits)


def levels(source: Source) -> torch.Tensor:
    return source.gather(torch.arange(len(source)))["image"]


def test_streamed_shards_keep_the_range_that_their_index_found(tmp_path: Path) -> None:
    import tarfile

    from bigmodel_cli.data.webdataset.stream import make_index

    shards = tmp_path / "shards"
    shards.mkdir()
    for n, base in enumerate((BASE, BASE + 1)):  # the second shard validates
        pictures = sorted(band(tmp_path / str(n), base=base).rglob("*.png"))
        with tarfile.open(shards / f"{n}.tar", "w") as tar:
            for i, file in enumerate(pictures):
                tar.add(file, f"{i}.png")
                (tmp_path / "label.cls").write_text(file.parent.name)
                tar.add(tmp_path / "label.cls", f"{i}.cls")
    notes: list[str] = []
    (shards / "index.json").write_text(json.dumps(make_index(sorted(shards.glob("*.tar")), shards / "i", notes)))
    assert "are kept between data.value_range" in notes[0]

    def streamed(like: ImageSpec | None = None, fits: bool = False, **options: Any) -> Any:
        where = {"path": str(shards / "index.json"), "size": 16, "crop": 1.0, "channels": 1}
        return load_data(DataSection(name="shard_stream", **where, **options), like, fits=fits)

    bundle = streamed(fits=True)
    assert bundle.spec.value_range == (BASE + 10 * STEP, BASE + 89 * STEP + 1)
    pixels = levels(bundle.load["train"]())
    assert int(pixels.min()) == 0 and len(pixels.unique()) > 40
    assert pixels.double().mean() / 255 == pytest.approx(bundle.spec.mean[0], abs=0.02)
    wider = streamed(value_range=(BASE - 300, BASE + 300))
    pixels = levels(wider.load["train"]())
    assert pixels.double().mean() / 255 == pytest.approx(wider.spec.mean[0], abs=0.02)
    assert pixels.double().std() / 255 == pytest.approx(wider.spec.std[0], rel=0.2)
    assert streamed(like=wider.spec).spec.value_range == (BASE - 300, BASE + 300)
    assert streamed(like=ImageSpec(1, 16, 16, ("a", "b")), fits=False).spec.value_range is None


@pytest.mark.parametrize(
    ("kind", "base", "step", "suffix"),
    [
        ("uint16", 30_000, 3, ".png"),
        ("uint16", 0, 1, ".tif"),
        ("float32", -0.5, 0.01, ".tif"),
        ("int32", -9e4, 7, ".tif"),
    ],
)
def test_the_range_is_found_on_train(kind: str, base: float, step: float, suffix: str, tmp_path: Path) -> None:
    bundle = opened(band(tmp_path / "x", kind, base, step, suffix))
    low, high = bundle.spec.value_range
    assert (low, high) == pytest.approx((base + 10 * step, base + 89 * step), rel=1e-6)
    pixels = levels(bundle.load["train"]())
    assert (int(pixels.min()), int(pixels.max())) == (0, 255) and len(pixels.unique()) == 80
    assert any("80 levels; 80 of them are kept" in note for note in bundle.notes), bundle.notes
    assert ImageSpec.from_dict(bundle.spec.to_dict()) == bundle.spec


def test_a_hot_pixel_does_not_stretch_the_range(tmp_path: Path) -> None:
    folder = band(tmp_path / "x")
    hot = np.asarray(Image.open(folder / "dark/0.png")).copy()
    hot[0, 0] = 65_535
    Image.fromarray(hot).save(folder / "dark/0.png")
    bundle = opened(folder)
    assert bundle.spec.value_range == (BASE + 10 * STEP, BASE + 89 * STEP)
    assert any("0.03% of the pixels are beyond it" in note for note in bundle.notes), bundle.notes


def test_data_is_measured_by_the_range_of_the_checkpoint(tmp_path: Path) -> None:
    """And fine-tuning keeps it where it shows the new data well, else finds another."""
    spec = opened(band(tmp_path / "first")).spec
    near, far = band(tmp_path / "near", base=BASE + 10), band(tmp_path / "far", base=0)
    assert opened(near, spec).spec.value_range == opened(far, spec).spec.value_range == spec.value_range
    assert opened(far, spec, fits=True).spec.value_range == (10 * STEP, 89 * STEP)
    wide = spec.with_(value_range=(BASE - 200.0, BASE + 500.0))
    assert opened(near, wide, fits=True).spec.value_range == wide.value_range
    plain = spec.with_(value_range=None)  # trained on 8 bits, or by an earlier version
    read = opened(near, plain)
    assert read.spec.value_range is None and any("their high byte is read" in note for note in read.notes)
    assert opened(near, plain, fits=True).spec.value_range == (BASE + 40, BASE + 277)
    assert opened(near, value_range=[0, 65_535]).spec.value_range == (0, 65_535)


def test_eight_bits_are_left_alone_and_deep_colours_are_said(tmp_path: Path) -> None:
    folder = band(tmp_path / "x", "uint8", 0, 1)
    bundle = opened(folder)
    assert bundle.spec.value_range is None and "value_range" not in bundle.spec.to_dict()
    import struct
    import zlib

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = b"".join(b"\0" + bytes(12 * 6) for _ in range(12))
    head = struct.pack(">IIBBBBB", 12, 12, 16, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (folder / "dark/deep.png").write_bytes(png)
    assert "1 of 21 images have colours of 16 bits: their high byte is read" in opened(folder).notes


def test_both_readers_map_values_alike_and_refuse_nan(tmp_path: Path) -> None:
    file = tmp_path / "x.tiff"
    values = np.linspace(-2, 3, 144, dtype=np.float32).reshape(12, 12)
    Image.fromarray(values).save(file)
    spec = ImageSpec(1, 12, 12, ("a",), (0.5,), (0.25,), square=12, value_range=(-1.0, 2.0))
    ours = decode(file.read_bytes(), "x", 1, 12, "bilinear", spec.value_range)
    assert torch.equal(ours[0], torch.from_numpy(np.rint((values.clip(-1, 2) + 1.0) * 85).astype(np.uint8)))
    how = {"mode": "L", "mean": [0.0], "std": [1.0], "scale": 1.0, "value_range": [-1.0, 2.0]}
    assert np.array_equal(prepare(file.read_bytes(), "x", how)[0], ours[0].float().numpy())
    values[3, 3] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        eight_bits(Image.fromarray(values), (0.0, 1.0))


@pytest.mark.parametrize("wrong", [[3.0, 3.0], [5.0, 1.0], [0.0, float("inf")], [0.0], ["a", 1.0]])
def test_a_spec_with_a_bad_range_is_refused(wrong: list[Any]) -> None:
    values = ImageSpec(1, 12, 12, ("a", "b")).to_dict()
    with pytest.raises(InputError):
        ImageSpec.from_dict({**values, "value_range": wrong})


def test_from_the_files_to_example_py(run_cli: Any, tmp_path: Path) -> None:
    """The high byte alone is one value for every image; the export is proven on the files of val."""
    pytest.importorskip("onnxruntime")
    folder = band(tmp_path / "x")
    options = ("--set", "data.channels=1", "--epochs", "20", "--lr", "1e-2", "--out", "r")
    train = run_cli("train", "mlp", "--data", folder, *options)
    assert train.returncode == 0 and "data.value_range = [30030, 30267]" in train.stderr, train.stderr
    files = sorted(folder.rglob("*.png"))
    said = run_cli("predict", "r", *files, "--json")
    answers = [json.loads(line)["top"][0]["class"] for line in said.stdout.splitlines()]
    assert answers == [file.parent.name for file in files]
    for extra in ((), ("--with-preprocessing",)):
        given = ("--seconds", 0, "--out", f"x{len(extra)}", "--json", *extra)
        exported = run_cli("export", "r", "--format", "onnx", *given)
        assert exported.returncode == 0, exported.stderr
        proof = json.loads(exported.stdout.strip().splitlines()[-1])
        assert proof["passed"] and proof["example"]["samples"] == 2, proof
        assert json.loads((tmp_path / f"x{len(extra)}/preprocess.json").read_text())["value_range"] == [30030, 30267]
