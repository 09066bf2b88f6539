"""Archives of a stranger: whatever their members are called or are, not a byte is written outside the data folder."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.readers.text_samples import read_texts
from bigmodel_cli.core.registry import data
from bigmodel_cli.data.user_data.image_discovery import list_images


def image() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), (9, 9, 9)).save(buffer, "PNG")
    return buffer.getvalue()


IMAGE = image()
Member = tuple[tarfile.TarInfo, bytes | None]


def file(name: str, content: bytes = IMAGE, size: int | None = None) -> Member:
    info = tarfile.TarInfo(name)
    info.size = len(content) if size is None else size
    return info, content


def special(kind: bytes, name: str, target: str = "") -> Member:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, None


HOSTILE: dict[str, list[Member]] = {
    "dots": [file("../../outside.png")],
    "dots_inside": [file("train/cat/../../../outside.png")],
    "absolute": [file("/outside/x.png")],
    "link_out": [special(tarfile.SYMTYPE, "train/cat/link.png", "../../../victim"), file("train/cat/link.png")],
    "folder_link_out": [special(tarfile.SYMTYPE, "train/dog", "../../outside"), file("train/dog/x.png")],
    "absolute_link": [special(tarfile.SYMTYPE, "train/cat/passwd.png", "/etc/passwd")],
    "hard_link": [special(tarfile.LNKTYPE, "train/cat/hard.png", "../../victim")],
    "pipe": [special(tarfile.FIFOTYPE, "train/cat/pipe.png")],
    "device": [special(tarfile.CHRTYPE, "train/cat/zero.png")],
    "device_of_cifar": [special(tarfile.FIFOTYPE, "cifar-10-batches-bin/data_batch_1.bin")],
    "another_folders_batch": [file("evil/cifar-10-batches-bin/../data_batch_1.bin", b"x" * 3073)],
    "escape_in_the_name": [file("train/cat/\x1b[31m\r\n.png")],
    "size_of_a_terabyte": [file("train/cat/big.png", IMAGE, 2**40)],
    "thousand_times_the_same": [file("train/cat/same.png")] * 1000,
}  # fmt: skip


def packed(path: Path, members: list[Member]) -> None:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as tar:
        for info, content in members:
            if content is not None and info.size != len(content):
                assert tar.fileobj is not None
                tar.fileobj.write(info.tobuf())  # a header that promises more than there is
                tar.fileobj.write(content)
            else:
                tar.addfile(info, io.BytesIO(content) if content is not None else None)


def everything(root: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(root)): p.read_bytes() if p.is_file() else None for p in root.rglob("*")}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("kind", ["images", "cifar10"])
def test_nothing_is_written_outside(name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "deep" / "home"
    home.mkdir(parents=True)
    (tmp_path / "victim").write_bytes(b"mine")
    (tmp_path / "deep/victim").write_bytes(b"mine")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    monkeypatch.chdir(home)
    good = [file(f"train/{label}/{i}.png") for label in ("cat", "dog") for i in range(2)]
    archive = home / ("cifar-10-binary.tar.gz" if kind == "cifar10" else "x.tar")
    packed(archive, HOSTILE[name] + good)
    before = {k: v for k, v in everything(tmp_path).items() if not k.startswith("deep/home")}

    def read() -> Any:
        if kind == "cifar10":
            return data.get("cifar10")(home).load["train"]()
        source = data.get("image_folder")(home, path=str(archive), size=32, cache="off").load["train"]()
        return [source.name(i) for i in range(len(source))]

    try:
        read()
    except InputError as error:  # refused in one line; to be read without its hostile members is as good
        assert len(error.line) <= 200 and error.line.isprintable()
    after = {k: v for k, v in everything(tmp_path).items() if not k.startswith("deep/home")}
    assert after == before
    written = [p for p in home.rglob("*") if p.is_symlink() or not (p.is_file() or p.is_dir())]
    assert written == [], "no link, pipe or device comes to be inside either"


@pytest.mark.parametrize(("name", "leaves"), [("dots", "outside.png"), ("pipe", "deep/home/train/cat/pipe.png")])
def test_the_archives_do_harm_where_they_are_let(name: str, leaves: str, tmp_path: Path) -> None:
    home = tmp_path / "deep" / "home"
    home.mkdir(parents=True)
    packed(home / "x.tar", HOSTILE[name])
    with tarfile.open(home / "x.tar") as tar:
        tar.extractall(home, filter="fully_trusted")
    made = tmp_path / leaves
    assert made.is_fifo() if name == "pipe" else made.read_bytes() == IMAGE


def shards(changes: dict[str, Any] | None = None) -> bytes:
    """A shard of WebDataset with two samples; `changes` are those of the header of the second image."""
    raw = b""
    for number in range(2):
        for suffix, content in (("png", IMAGE), ("cls", b"a")):
            info = tarfile.TarInfo(f"{number}.{suffix}")
            info.size = len(content)
            for field, value in (changes or {}).items() if (number, suffix) == (1, "png") else ():
                setattr(info, field, value)
            raw += info.tobuf(tarfile.GNU_FORMAT) + (content + bytes(-len(content) % 512)) * info.isreg()
    return raw + bytes(1024)


def zipped(name: str = "train/b/1.png") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for member in ("train/a/0.png", "train/b/0.png", name):
            archive.writestr(member, IMAGE)
    return buffer.getvalue()


def entry(offset: int, code: str, value: int) -> bytes:
    """The zip with the field at `offset` of the last entry of its directory replaced."""
    raw = bytearray(zipped())
    struct.pack_into(code, raw, raw.rindex(b"PK\1\2") + offset, value)
    return bytes(raw)


def table(repeats: int = 3) -> bytes:
    """A table of Parquet whose one text of a million characters is stored once, for each of its rows."""
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    texts = arrow.DictionaryArray.from_arrays(arrow.array([0] * repeats, arrow.int32()), arrow.array(["ab" * 500_000]))
    buffer = io.BytesIO()
    parquet.write_table(arrow.table({"text": texts, "label": ["a"] * repeats}), buffer)
    return buffer.getvalue()


DAMAGED: dict[str, tuple[str, Callable[[], bytes]]] = {
    "a shard cut off": ("x.tar", lambda: shards()[:1700]),
    "a shard with a negative size": ("x.tar", lambda: shards({"size": -512})),
    "a compressed one": ("x.tar.gz", lambda: gzip.compress(shards({"size": -512}))),
    "a shard with a size beyond its end": ("x.tar", lambda: shards({"size": 1 << 40})),
    "a shard with a name that leads out": ("x.tar", lambda: shards({"name": "../1.png"})),
    "a shard that is damaged within": ("x.tar", lambda: shards().replace(b"1.png", b"1.pnx")),
    "a shard with a link for an image": ("x.tar", lambda: shards({"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"})),
    "a shard with a pipe for an image": ("x.tar", lambda: shards({"type": tarfile.FIFOTYPE})),
    "a zip cut off": ("x.zip", lambda: zipped()[:-30]),
    "a zip with a size that is a lie": ("x.zip", lambda: entry(24, "<I", 1 << 27)),
    "a zip with an offset beyond its end": ("x.zip", lambda: entry(42, "<I", 1 << 30)),
    "a zip with a name that leads out": ("x.zip", lambda: zipped("../1.png")),
    "a zip with a method of its own": ("x.zip", lambda: entry(10, "<H", 99)),
    "a table cut off": ("x.parquet", lambda: table()[:-100]),
    "a table with a length that is a lie": ("x.parquet", lambda: table()[:-8] + struct.pack("<i4s", 1 << 30, b"PAR1")),
    "a table that is damaged within": ("x.parquet", lambda: table()[:80] + b"\xff" * 200 + table()[280:]),
    "a table with a name that is no text": ("x.parquet", lambda: table().replace(b"label", b"l\xffbel")),
    "a table that grows": ("x.parquet", lambda: table(5000)),
}
SOUND = {"x.tar": shards, "x.tar.gz": lambda: gzip.compress(tarred()), "x.zip": zipped, "x.parquet": table}


def test_names_of_classes_that_are_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "x.tar").write_bytes(shards().replace(b"a" + bytes(511), b"0" + bytes(511)))
    (tmp_path / "classes.txt").write_bytes(b"\xe9t\xe9\n")
    with pytest.raises(InputError, match=r"classes\.txt"):
        list_images(str(tmp_path / "x.tar"))
    (tmp_path / "classes.txt").write_text("été\n", encoding="utf-8")
    assert everything_read(tmp_path / "x.tar") == 2 and list_images(str(tmp_path / "x.tar")).classes == ("été",)


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for label in ("cat", "dog"):
            info, content = file(f"train/{label}/0.png")
            tar.addfile(info, io.BytesIO(content or b""))
    return buffer.getvalue()


def everything_read(path: Path) -> int:
    """How many samples there are, each read whole."""
    if path.suffix == ".parquet":
        return len(list(read_texts(path, "text")))
    return sum(len(item.read()) > 0 for items in list_images(str(path)).splits.values() for item in items)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("case", DAMAGED)
def test_data_that_lies_is_refused_in_a_line(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off, with a size, an offset or a name of a stranger's choice. Negative control: as it is made, it is read."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    name, make = DAMAGED[case]
    path = tmp_path / name
    path.write_bytes(SOUND[name]())
    assert everything_read(path) >= 2
    path.write_bytes(make())
    with pytest.raises(InputError) as caught:
        everything_read(path)
    assert caught.value.exit_code == 2 and name in caught.value.line and len(caught.value.line) <= 200
    assert {p.name for p in tmp_path.iterdir()} <= {name, "cache"}
