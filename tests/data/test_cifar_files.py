"""CIFAR-10's forms, damaged and hostile ones among them."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bigmodel_cli.core.errors import BigmodelError, InputError
from bigmodel_cli.core.registry import data
from bigmodel_cli.data.image.cifar import CLASSES, MAX_BATCH_BYTES

RNG = np.random.default_rng(0)


def png(side: int = 32, value: int | None = None) -> bytes:
    pixels = RNG.integers(0, 256, (side, side, 3)) if value is None else np.full((side, side, 3), value)
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def class_folders(root: Path) -> None:
    for split in ("train", "test"):
        for k, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(2):
                (folder / f"{i:04}.png").write_bytes(png(value=k * 10 + i))


def batches(n: int = 10) -> dict[str, bytes]:
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    return {name: b"".join(bytes([k % 10]) + RNG.bytes(3072) for k in range(n)) for name in names}


def archive(path: Path, members: list[tuple[tarfile.TarInfo, bytes | None]]) -> None:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w:xz") as tar:
        for info, content in members:
            info.size = len(content) if content is not None else 0
            tar.addfile(info, io.BytesIO(content) if content is not None else None)


def plain(prefix: str = "cifar-10-batches-bin/") -> list[tuple[tarfile.TarInfo, bytes | None]]:
    return [(tarfile.TarInfo(prefix + name), content) for name, content in batches().items()]


def test_class_folders(tmp_path):
    class_folders(tmp_path / "cifar10")
    (tmp_path / "cifar10/train/.ipynb_checkpoints").mkdir()
    train = data.get("cifar10")(tmp_path).load["train"]()
    assert train.labels.tolist() == [k for k in range(10) for _ in range(2)]
    assert train.images[:, 0, 0, 0].tolist() == [k * 10 + i for k in range(10) for i in range(2)]


@pytest.mark.parametrize("fault", ["empty", "missing", "extra", "not an image", "size"])
def test_broken_class_folders_are_named(tmp_path, fault):
    class_folders(tmp_path)
    cat = tmp_path / "train/cat"
    if fault in ("empty", "missing"):
        for path in cat.iterdir():
            path.unlink()
    if fault == "missing":
        cat.rmdir()
    if fault == "extra":
        cat = tmp_path / "train/zebra"
        cat.mkdir()
        (cat / "0.png").write_bytes(png())
    if fault == "not an image":
        (cat / "0.png").write_bytes(b"text")
    if fault == "size":
        (cat / "0.png").write_bytes(png(33))
    with pytest.raises(InputError, match=cat.name):
        data.get("cifar10")(tmp_path).load["train"]()


def test_binary_folder_and_archive_agree(tmp_path):
    content = batches()
    (tmp_path / "a/cifar-10-batches-bin").mkdir(parents=True)
    for name, raw in content.items():
        (tmp_path / "a/cifar-10-batches-bin" / name).write_bytes(raw)
    (tmp_path / "b").mkdir()
    members = [(tarfile.TarInfo(f"cifar-10-batches-bin/{name}"), raw) for name, raw in content.items()]
    archive(tmp_path / "b/cifar-10-binary.tar.gz", members)
    (tmp_path / "b/cifar-10-batches-bin").mkdir()
    (tmp_path / "b/cifar-10-batches-bin/.data_batch_1.bin.tmp").symlink_to(tmp_path / "elsewhere")
    one, two = (data.get("cifar10")(tmp_path / x).load["train"]() for x in "ab")
    assert not (tmp_path / "elsewhere").exists()
    assert one.images.shape == (50, 3, 32, 32) and torch.equal(one.images, two.images)
    assert one.labels.tolist() == two.labels.tolist() == list(range(10)) * 5
    first = content["data_batch_1.bin"]
    assert one.images[0].flatten().tolist() == list(first[1:3073])


@pytest.mark.parametrize("fault", ["cut", "label", "gone", "empty"])
def test_damaged_binary_files_are_named(tmp_path, fault):
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for name, raw in batches().items():
        (folder / name).write_bytes(raw)
    bad = folder / "data_batch_3.bin"
    if fault == "gone":
        bad.unlink()
    else:
        raw = bad.read_bytes()
        bad.write_bytes({"cut": raw[:-1], "label": b"\x0a" + raw[1:], "empty": b""}[fault])
    with pytest.raises(InputError, match="cifar-10-batches-bin"):
        data.get("cifar10")(tmp_path).load["train"]()


def test_pickled_files_are_refused_with_a_hint(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(InputError) as caught:
        data.get("cifar10")(tmp_path)
    assert "cifar-10-binary.tar.gz" in caught.value.hint


def hostile_members() -> list[list[tuple[tarfile.TarInfo, bytes | None]]]:
    def link(kind: bytes, name: str, target: str) -> tuple[tarfile.TarInfo, None]:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, target
        return info, None

    evil = b"evil" * 100
    return [
        [(tarfile.TarInfo("../../evil.bin"), evil)],
        [(tarfile.TarInfo("/tmp/bigmodel-evil.bin"), evil)],
        [(tarfile.TarInfo("../data_batch_1.bin"), evil)],
        [link(tarfile.SYMTYPE, "cifar-10-batches-bin/data_batch_1.bin", "../../victim")],
        [link(tarfile.LNKTYPE, "cifar-10-batches-bin/data_batch_1.bin", "/etc/passwd")],
        [link(tarfile.SYMTYPE, "cifar-10-batches-bin", "../elsewhere")],
        [link(tarfile.FIFOTYPE, "cifar-10-batches-bin/data_batch_1.bin", "")],
    ]


@pytest.mark.parametrize("extra", hostile_members())
def test_a_hostile_archive_writes_nothing_outside(tmp_path, extra):
    home = tmp_path / "in/home"
    home.mkdir(parents=True)
    (tmp_path / "in/elsewhere").mkdir()
    (tmp_path / "victim").write_text("untouched")
    (tmp_path / "in/victim").write_text("untouched")
    archive(home / "cifar-10-binary.tar.gz", extra + plain())
    try:
        data.get("cifar10")(home).load["train"]()
    except BigmodelError as error:
        assert error.line
    outside = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if home not in p.parents}
    assert outside == {"in", "in/home", "in/elsewhere", "in/victim", "victim"}
    assert (tmp_path / "victim").read_text() == (tmp_path / "in/victim").read_text() == "untouched"
    assert not any(p.is_symlink() for p in tmp_path.rglob("*"))
    assert not Path("/tmp/bigmodel-evil.bin").exists()


def test_a_batch_that_is_too_large_is_not_unpacked(tmp_path):
    large = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin"), bytes(MAX_BATCH_BYTES + 1)
    archive(tmp_path / "cifar-10-binary.tar.gz", [large, *plain()[1:]])
    with pytest.raises(InputError, match=f"expected at most {MAX_BATCH_BYTES}"):
        data.get("cifar10")(tmp_path).load["train"]()
    assert not list(tmp_path.rglob("*.bin"))


def test_an_archive_member_of_another_name_never_replaces_a_batch(tmp_path):
    real = plain()
    archive(tmp_path / "cifar-10-binary.tar.gz", [*real, (tarfile.TarInfo("../data_batch_1.bin"), b"\x01" * 3073)])
    train = data.get("cifar10")(tmp_path).load["train"]()
    assert len(train) == 50 and train.images[0].flatten().tolist() == list(real[0][1][1:3073])


@pytest.mark.parametrize("name", ["cifar-10-binary.tar.gz", "cifar10-images.tar.xz"])
def test_damaged_archives_are_one_line(tmp_path, name):
    path = tmp_path / name
    images = [
        (tarfile.TarInfo(f"{s}/{c}/{i:04}.png"), png()) for s in ("train", "test") for c in CLASSES for i in range(3)
    ]
    archive(path, plain() if "binary" in name else images)
    whole = path.read_bytes()
    places = range(1, len(whole), max(len(whole) // 25, 1))
    cases = [whole[:i] for i in places] + [whole[:i] + bytes(64) + whole[i + 64 :] for i in places]
    for case in cases:
        for left in tmp_path.rglob("*.bin"):
            left.unlink()
        path.write_bytes(case)
        try:
            data.get("cifar10")(tmp_path).load["train"]()
        except InputError as error:
            assert name in error.line or "cifar-10-batches-bin" in error.line


def test_image_archive_is_read_in_place(tmp_path):
    members = [
        (tarfile.TarInfo(f"{split}/{c}/{i:04}.png"), png(value=k * 10 + i))
        for split in ("train", "test")
        for k, c in enumerate(CLASSES)
        for i in range(2)
    ]
    archive(tmp_path / "cifar10-images.tar.xz", members)
    test = data.get("cifar10")(tmp_path).load["test"]()
    assert test.labels.bincount().tolist() == [2] * 10
    assert test.images[:, 0, 0, 0].tolist() == [k * 10 + i for k in range(10) for i in range(2)]
    assert [p.name for p in tmp_path.iterdir()] == ["cifar10-images.tar.xz"]
