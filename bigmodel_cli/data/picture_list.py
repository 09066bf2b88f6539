"""Which pictures there are, and their classes: class folders, a table of paths, or a tar of class folders.

Nothing is decoded here. Whatever a layout has wrong is said in one line.
"""

from __future__ import annotations

import csv
import hashlib
import os
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.pictures import SUFFIXES

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""A folder's or a table's word for a split -> the split."""
HIDDEN = ("__MACOSX", "Thumbs.db", "desktop.ini")
MAX_FILE = 256 * 2**20  # bytes of one picture file
MAX_PACKED = 4 * 2**30  # bytes of pictures in a compressed tar, which are held in memory
TABLES = (".csv", ".tsv")
TARS = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2")
EXPECTED = "expected PATH/train/<class>/ and PATH/val/<class>/, or PATH/<class>/"


@dataclass(slots=True)
class Item:
    """One picture: where its bytes lie, and what tells that they have not changed."""

    name: str
    label: int
    file: str
    size: int
    stamp: tuple[int, ...]
    offset: int | None = None
    packed: bytes | None = field(default=None, repr=False)

    def read(self) -> bytes:
        """The encoded bytes.

        Raises:
            InputError: the file has gone or cannot be read.
        """
        if self.packed is not None:
            return self.packed
        try:
            with open(self.file, "rb") as file:  # noqa: PTH123 (a Path for each of a million files costs seconds)
                file.seek(self.offset or 0)
                return file.read(self.size)
        except OSError as error:
            raise InputError(f"{self.file}: {error.strerror or error}", "it was there when the run began") from None


@dataclass(frozen=True)
class Listing:
    """The pictures of each split, sorted by name, and what a person should know of them."""

    classes: tuple[str, ...]
    splits: Mapping[str, list[Item]]
    notes: tuple[str, ...] = ()

    def counts(self, split: str) -> list[int]:
        """How many pictures each class has in `split`."""
        result = [0] * len(self.classes)
        for item in self.splits[split]:
            result[item.label] += 1
        return result

    def fingerprint(self) -> str:
        """SHA-256 over the names and sizes of the train pictures: the same wherever the folder lies."""
        total = hashlib.sha256()
        for item in self.splits["train"]:
            total.update(f"{item.name}:{item.size}\n".encode("utf-8", "surrogateescape"))
        return total.hexdigest()


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name in HIDDEN


def list_pictures(path: Path) -> Listing:
    """What lies at `path`: a folder of class folders, a CSV or TSV table, or a tar.

    Raises:
        InputError: there is nothing, or the layout is wrong; the line says how.
    """
    name = path.name.lower()
    if path.is_dir():
        return _from_folder(path)
    if not path.exists():
        raise InputError(f"{path}: no such folder or file", EXPECTED)
    if name.endswith(TABLES):
        return _from_table(path)
    if name.endswith(TARS):
        return _from_tar(path)
    raise InputError(f"{path}: neither a folder, a table (.csv, .tsv) nor a tar", EXPECTED)


def _from_folder(root: Path) -> Listing:
    inside = sorted(p.name for p in _entries(root) if p.is_dir())
    splits: dict[str, str] = {}
    for name in inside:
        split = SPLITS.get(name.lower())
        if split is not None and split in splits:
            raise InputError(f"{root}: both {splits[split]}/ and {name}/", f"expected one {split} folder")
        if split is not None:
            splits[split] = name
    if not splits:
        return _assemble(str(root), {"train": _class_folders(root, root)})
    if "train" not in splits:
        raise InputError(f"{root}: {', '.join(f'{n}/' for n in splits.values())} but no train/", EXPECTED)
    others = [name for name in inside if name not in splits.values()]
    notes = [f"not used: {', '.join(f'{name}/' for name in others)} beside {splits['train']}/"] if others else []
    return _assemble(str(root), {s: _class_folders(root, root / n) for s, n in splits.items()}, notes)


def _entries(folder: Path) -> list[Path]:
    try:
        return [p for p in folder.iterdir() if not is_hidden(p.name)]
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}", EXPECTED) from None


def _class_folders(root: Path, folder: Path) -> dict[str, list[Item]]:
    """Class name -> its pictures, from the folders in `folder`, at any depth."""
    entries = _entries(folder)
    classes = sorted(p.name for p in entries if p.is_dir())
    loose = sum(p.is_file() and p.suffix.lower() in SUFFIXES for p in entries)
    if loose and not classes:
        raise InputError(f"{folder}: {loose} pictures directly in it and no class folders", EXPECTED)
    if not classes:
        raise InputError(f"{folder}: no class folders in it", EXPECTED)
    if loose:
        raise InputError(f"{folder}: {loose} pictures lie beside the class folders", "each belongs into a class")
    return {name: sorted(_pictures(root, folder / name), key=lambda item: item.name) for name in classes}


def _pictures(root: Path, folder: Path) -> Iterator[Item]:
    other: list[str] = []
    found = False
    for entry in _files(str(folder)):
        if entry.name[entry.name.rfind(".") :].lower() in SUFFIXES:
            found = True
            yield _item(entry.path, entry.path[len(str(root)) + 1 :].replace(os.sep, "/"))
        else:
            other.append(entry.name)
    if not found:
        there = f" (only {len(other)} other files, as {other[0]})" if other else ""
        raise InputError(f"{folder}: an empty class: no pictures in it{there}", "remove it, or put its pictures there")


def _files(folder: str) -> Iterator[os.DirEntry[str]]:
    """Every file below `folder` that is not hidden. Links to folders are not followed: they may go round."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _files(entry.path)
            else:
                yield entry


def _item(file: str, name: str) -> Item:
    try:
        stat = os.stat(file)  # noqa: PTH116
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}", "a link that leads nowhere?") from None
    if stat.st_size > MAX_FILE:
        raise InputError(f"{file}: {stat.st_size} bytes", f"expected a picture of at most {MAX_FILE}")
    return Item(name, -1, file, stat.st_size, (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino))


def _assemble(where: str, found: Mapping[str, Mapping[str, list[Item]]], notes: list[str] | None = None) -> Listing:
    """Labels by sorted class name; the class lists of train and val must be equal, test's a part of them."""
    classes = tuple(sorted(found["train"]))
    if len(classes) < 2:
        raise InputError(f"{where}: one class only ({classes[0]})", "expected at least two")
    for split in found:
        here = set(found[split])
        missing = sorted(set(classes) - here) if split != "test" else []
        extra = sorted(here - set(classes))
        if missing or extra:
            parts = [f"no {_few(missing)}"] * bool(missing) + [f"{_few(extra)} not in train"] * bool(extra)
            raise InputError(f"{where}: {split} has {', '.join(parts)}", "expected the classes of train")
    splits: dict[str, list[Item]] = {}
    for split, members in found.items():
        splits[split] = [item for name in classes for item in members.get(name, ())]
        for k, name in enumerate(classes):
            for item in members.get(name, ()):
                item.label = k
    return Listing(classes, splits, tuple(notes or ()))


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _from_table(path: Path) -> Listing:
    """path,label[,split] with a header; paths are relative to the table's folder."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as table:
            reader = csv.reader(table, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            rows = list(enumerate(reader, 1))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a table of text: {error}", "expected path,label[,split] with a header") from None
    head = [cell.strip().lower() for cell in rows[0][1]] if rows else []
    if "path" not in head or "label" not in head:
        raise InputError(f"{path}:1: columns {', '.join(head) or 'none'}", "expected a header path,label[,split]")
    found: dict[str, dict[str, list[Item]]] = {"train": {}}
    for line, cells in rows[1:]:
        if not any(cell.strip() for cell in cells):
            continue
        row = dict(zip(head, cells, strict=False))
        name, label = row.get("path", "").strip(), row.get("label", "").strip()
        split = SPLITS.get(row.get("split", "").strip().lower() or "train")
        if not name or not label:
            raise InputError(f"{path}:{line}: no {'path' if not name else 'label'}", "expected path,label[,split]")
        if split is None:
            raise InputError(f"{path}:{line}: split {row['split']!r}", "expected train, val or test")
        file = path.parent / name
        if not file.is_file():
            raise InputError(f"{path}:{line}: no file {name}", f"paths are relative to {path.parent}")
        found.setdefault(split, {}).setdefault(label, []).append(_item(str(file), name))
    if not found["train"]:
        raise InputError(f"{path}: no rows of split train", "expected path,label[,split]")
    return _assemble(str(path), found)


def _from_tar(path: Path) -> Listing:
    """[top/][split/]<class>/<file>, read where it lies: nothing is unpacked, names are only names."""
    packed = not path.name.lower().endswith(".tar")
    stat = path.stat()
    members: list[tuple[tuple[str, ...], Item]] = []
    total = 0
    try:
        with tarfile.open(path, "r:*" if packed else "r:") as tar:
            for member in tar:
                parts = PurePosixPath(member.name).parts
                if parts[:1] == ("/",) or ".." in parts:
                    raise InputError(f"{path}: a member called {member.name}", "expected names inside the archive")
                if not member.isreg() or any(is_hidden(part) and part != "." for part in parts):
                    continue
                if PurePosixPath(member.name).suffix.lower() not in SUFFIXES or member.size > MAX_FILE:
                    continue
                total += member.size
                if packed and total > MAX_PACKED:
                    raise InputError(f"{path}: over {MAX_PACKED} bytes", "expected an uncompressed .tar, or a folder")
                content = tar.extractfile(member).read() if packed else None  # type: ignore[union-attr]
                stamp = (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
                item = Item(member.name, -1, str(path), member.size, stamp, member.offset_data, content)
                members.append((tuple(p for p in parts if p != "."), item))
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise InputError(f"{path}: damaged or cut off ({error})", "expected a tar of class folders") from None
    return _assemble(str(path), _tar_splits(path, members))


def _tar_splits(path: Path, members: list[tuple[tuple[str, ...], Item]]) -> dict[str, dict[str, list[Item]]]:
    """Split -> class -> pictures. Folders that hold everything are skipped."""
    if not members:
        raise InputError(f"{path}: no pictures in it", "expected [train/]<class>/<file>")
    top = 0
    while len({parts[top] for parts, _ in members if len(parts) > top + 2}) == 1 and all(
        len(parts) > top + 2 for parts, _ in members
    ):
        top += 1
    has_splits = any(parts[top].lower() in SPLITS and len(parts) > top + 2 for parts, _ in members)
    found: dict[str, dict[str, list[Item]]] = {}
    for parts, item in sorted(members, key=lambda pair: pair[1].name):
        rest = parts[top:]
        split = SPLITS.get(rest[0].lower()) if has_splits else "train"
        rest = rest[1:] if has_splits else rest
        if split is None or len(rest) < 2:
            raise InputError(f"{path}: {item.name} is in no class folder", "expected [train/]<class>/<file>")
        found.setdefault(split, {}).setdefault(rest[0], []).append(item)
    if "train" not in found:
        raise InputError(f"{path}: {', '.join(found)} but no train/", "expected [train/]<class>/<file>")
    return found
