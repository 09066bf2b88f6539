"""CIFAR-10 from its binary files or from class folders. The pickled version is refused, since unpickling runs code."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from bigmodel_cli.core.errors import InputError, MachineError
from bigmodel_cli.core.files.atomic_files import write_bytes
from bigmodel_cli.core.files.regular_files import regular_stat
from bigmodel_cli.core.files.tar_files import ERRORS, open_tar
from bigmodel_cli.core.image.images import decode
from bigmodel_cli.core.registry import data
from bigmodel_cli.core.types import DataBundle, ImageSpec
from bigmodel_cli.data.download import download
from bigmodel_cli.data.image import decode_cache
from bigmodel_cli.data.image.arrays import ImageArrays, select_samples
from bigmodel_cli.data.thread_map import for_each

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ANY = ("cifar10-images.tar.xz|cifar-10-binary.tar.gz|cifar-10-batches-bin|cifar10-images",)
BATCHES = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
ARCHIVE = "cifar-10-binary.tar.gz"
SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
RECORD_BYTES = 1 + 3 * 32 * 32
MAX_BATCH_BYTES = 10_000 * RECORD_BYTES
MAX_IMAGE_BYTES = 1_000_000  # bytes of one image file


@data.register(folders=("", "cifar10"), files=ANY)
def cifar10(
    root: Path, *, classes: tuple[str, ...] = (), samples_per_class: Annotated[int, Field(gt=0)] | None = None
) -> DataBundle:
    """60,000 colour images in 10 classes, 32x32 (Krizhevsky 2009).

    `classes` selects and orders classes; by default all. With `samples_per_class`, train has
    exactly that many of each, and val as many others.
    """
    return select_samples(_load_cifar(root), classes, samples_per_class)


def _load_cifar(root: Path) -> DataBundle:
    spec = ImageSpec(3, 32, 32, CLASSES)
    for folder in (root / "cifar10", root):
        if all((folder / split / CLASSES[0]).is_dir() for split in BATCHES):
            images = functools.cache(functools.partial(_from_folders, folder))
            return DataBundle(spec, {s: functools.partial(images, s) for s in BATCHES}, _hash_listing(folder))
    archive = root / "cifar10-images.tar.xz"
    if archive.is_file():
        packed = functools.cache(functools.partial(_from_archive, archive))
        load = {s: functools.partial(packed, s) for s in BATCHES}
        return DataBundle(spec, load, hashlib.sha256(archive.read_bytes()).hexdigest())
    folder = _binary_folder(root)
    binary = functools.cache(functools.partial(_from_binary, folder))
    total = hashlib.sha256()
    for name in BATCHES["train"]:
        total.update((folder / name).read_bytes())
    return DataBundle(spec, {s: functools.partial(binary, s) for s in BATCHES}, total.hexdigest())


def _binary_folder(root: Path) -> Path:
    for folder in (root / "cifar-10-batches-bin", root / "cifar10" / "cifar-10-batches-bin"):
        if all((folder / name).is_file() for names in BATCHES.values() for name in names):
            return folder
    archive = next((p for p in (root / ARCHIVE, root / "cifar10" / ARCHIVE) if p.is_file()), None)
    if archive is None and any((p / "cifar-10-batches-py").is_dir() for p in (root, root / "cifar10")):
        raise InputError(f"{root}: only CIFAR-10's pickled files", "reading a pickle runs code", f"put {ARCHIVE} there")
    for folder in (root / "cifar-10-batches-bin", root / "cifar10" / "cifar-10-batches-bin"):
        if archive is None and folder.is_dir():
            missing = [n for names in BATCHES.values() for n in names if not (folder / n).is_file()]
            raise InputError(f"{folder}: {', '.join(missing)} missing", hint=f"put {ARCHIVE} beside it")
    if archive is None:
        address = f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}"
        archive = download([address], root / "cifar10" / ARCHIVE, sha256=SHA256, what="cifar10")
    return _unpack(archive)


def _unpack(archive: Path) -> Path:
    """Extract only the known files of the archive, each limited to its known size."""
    folder = archive.parent / "cifar-10-batches-bin"
    wanted = {name for names in BATCHES.values() for name in names}
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise MachineError(f"cannot unpack {archive}: {error}", hint="--data-dir a folder you can write") from None
    try:
        with open_tar(archive, "r:gz") as (tar, members):
            for member in members:
                # Match the whole path: a file of the same name in another folder must not replace it.
                name = member.name.removeprefix("./").removeprefix("cifar-10-batches-bin/")
                file = tar.extractfile(member) if member.isreg() and name in wanted else None
                if file is not None and member.size > MAX_BATCH_BYTES:
                    raise InputError(
                        f"{archive}: {name} has {member.size} bytes", f"expected at most {MAX_BATCH_BYTES}"
                    )
                if file is not None:
                    write_bytes(folder / name, file.read())
    except ERRORS as error:
        raise InputError(f"{archive}: damaged or cut off ({error})", "delete it to have it downloaded again") from None
    missing = sorted(name for name in wanted if not (folder / name).is_file())
    if missing:
        raise InputError(f"{archive}: {missing[0]} is not in it", "expected CIFAR-10's binary version")
    return folder


def _from_binary(folder: Path, split: str) -> ImageArrays:
    parts = []
    for name in BATCHES[split]:
        raw = (folder / name).read_bytes()
        if not raw or len(raw) % RECORD_BYTES or len(raw) > MAX_BATCH_BYTES:
            raise InputError(f"{folder / name}: {len(raw)} bytes", f"expected a multiple of {RECORD_BYTES}")
        parts.append(torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(-1, RECORD_BYTES))
    rows = torch.cat(parts)
    if int(rows[:, 0].max()) >= len(CLASSES):
        raise InputError(f"{folder}: label {int(rows[:, 0].max())}", "expected 0 to 9")
    return _arrays(rows, split)


def _hash_listing(folder: Path) -> str:
    """A fingerprint from names and sizes, since hashing 60,000 files would take longer than training on them."""
    total = hashlib.sha256()
    for path in sorted((folder / "train").glob("*/*")):
        total.update(f"{path.parent.name}/{path.name}:{path.stat().st_size}\n".encode())
    return total.hexdigest()


def _from_folders(folder: Path, split: str) -> ImageArrays:
    there = {path.name for path in (folder / split).iterdir() if path.is_dir() and path.name[0] != "."}
    if there != set(CLASSES):
        wrong = [f"no {name}" for name in CLASSES if name not in there]
        wrong += [f"{name} is no class" for name in sorted(there - set(CLASSES))]
        raise InputError(f"{folder / split}: {', '.join(wrong)}", "expected one folder per class")
    files = [(k, path) for k, name in enumerate(CLASSES) for path in sorted((folder / split / name).glob("[!.]*"))]
    for k in sorted(set(range(len(CLASSES))) - {k for k, _ in files}):
        raise InputError(f"{folder / split / CLASSES[k]}: no images", "expected at least one per class")
    stats = [regular_stat(path) for _, path in files]
    made_from = [(str(p), k, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for (k, p), s in zip(files, stats, strict=True)]
    decode_cache.wait_for_clock_tick(max(s.st_ctime_ns for s in stats))
    return _decode_all(made_from, lambda: [(str(path), k, path.read_bytes) for k, path in files], split)


def _from_archive(archive: Path, split: str) -> ImageArrays:
    """Read class folders directly from a tar, without unpacking it."""
    stat = archive.stat()
    decode_cache.wait_for_clock_tick(stat.st_ctime_ns)
    made_from = [(str(archive.absolute()), split, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)]
    return _decode_all(made_from, lambda: _archive_members(archive, split), split)


Encoded = tuple[str, int, Callable[[], bytes]]
"""An image's name, its label, and a function that reads its encoded bytes."""


def _archive_members(archive: Path, split: str) -> list[Encoded]:
    found: list[tuple[str, int, bytes]] = []
    try:
        with open_tar(archive, "r:*") as (tar, members):
            for member in members:
                parts = member.name.split("/")[-3:]
                if len(parts) != 3 or parts[0] != split or parts[1] not in CLASSES or member.size > MAX_IMAGE_BYTES:
                    continue
                file = tar.extractfile(member) if member.isreg() else None
                if file is not None:
                    found.append(("/".join(parts), CLASSES.index(parts[1]), file.read()))
    except ERRORS as error:
        raise InputError(f"{archive}: damaged or cut off ({error})") from None
    if not found:
        raise InputError(f"{archive}: no images in {split}/", "expected train/<class>/ and test/<class>/")
    return [(f"{archive}:{name}", label, raw.__bytes__) for name, label, raw in sorted(found)]


def _decode_all(made_from: list[tuple[Any, ...]], find: Callable[[], list[Encoded]], split: str) -> ImageArrays:
    """The split as CIFAR records, label first, from the cache; `find` lists the images only if they must be decoded."""
    items = functools.cache(find)

    def record(index: int) -> Tensor:
        name, label, read = items()[index]
        pixels = decode(read(), name, 3)
        if pixels.shape != (3, 32, 32):
            raise InputError(f"{name}: {pixels.shape[2]}x{pixels.shape[1]}", "expected 32x32")
        return torch.cat([torch.tensor([label], dtype=torch.uint8), pixels.reshape(-1)])

    what = f"decoding cifar10 {split}"
    found = decode_cache.open_cached(made_from, (RECORD_BYTES,), record)
    found = found or decode_cache.open_or_fill(what, made_from, len(items()), (RECORD_BYTES,), record)
    if found is not None:
        return _arrays(found.read(range(len(found.good))), split)
    rows = torch.empty((len(items()), RECORD_BYTES), dtype=torch.uint8)
    for_each(what, len(rows), lambda i: rows[i].copy_(record(i)))
    return _arrays(rows, split)


def _arrays(rows: Tensor, split: str) -> ImageArrays:
    """From records (N, 3073) uint8: a label, then 32x32 red, green and blue."""
    return ImageArrays(rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0].long(), split)
