"""Find images and their classes: in class folders, a table of paths, a tar, shards or a data set.

Nothing is decoded here. A wrong layout is reported in one line.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.images import SUFFIXES
from bigmodel_cli.data.image.listing import MAX_FILE, SPLITS, Item, Listing, build_listing, is_hidden
from bigmodel_cli.data.user_data.image_huggingface import SCHEME, from_hub, is_saved
from bigmodel_cli.data.user_data.image_tar import from_tar
from bigmodel_cli.data.webdataset.images import from_shards, is_shard
from bigmodel_cli.data.webdataset.index import expand_pattern, is_pattern

TABLES = (".csv", ".tsv")
TARS = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2")
EXPECTED = "expected PATH/train/<class>/ and PATH/val/<class>/, or PATH/<class>/"


def list_images(where: str | Path, image: str | None = None, label: str | None = None) -> Listing:
    """List the images at `where`: class folders, a CSV or TSV table, a tar, shards, or a Hugging Face data set.

    `image` and `label` are the columns of a table or a data set; `label` is also the field in a shard's JSON.

    Raises:
        InputError: nothing is there, or the layout is wrong; the message says how.
        MachineError: a required library is missing, or the network is unreachable.
    """
    if str(where).startswith(SCHEME):
        return from_hub(str(where), image, label)
    path = Path(where).expanduser().absolute()
    name = path.name.lower()
    if not path.exists():
        if is_pattern(str(path)):
            return from_shards(str(path), expand_pattern(str(path)), label)
        raise InputError(f"{path}: no such folder or file", EXPECTED)
    if path.is_dir():
        if is_saved(path):
            return from_hub(str(path), image, label)
        shards = _find_shards(path)
        return from_shards(str(path), shards, label) if shards else _from_folder(path)
    if name.endswith(TABLES):
        return _from_table(path, (image or "path").lower(), (label or "label").lower())
    if name.endswith(".tar") and is_shard(path):
        return from_shards(str(path), [path], label)
    if name.endswith(TARS):
        return from_tar(path)
    raise InputError(f"{path}: neither a folder, a table (.csv, .tsv) nor a tar", EXPECTED)


def _find_shards(root: Path) -> list[Path]:
    """The tars in `root` or in its split folders."""
    splits = [p for p in _entries(root) if p.is_dir() and p.name.lower() in SPLITS]
    return sorted(p for folder in (root, *splits) for p in _entries(folder) if p.suffix.lower() == ".tar")


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
        return build_listing(str(root), {"train": _class_folders(root, root)})
    if "train" not in splits:
        raise InputError(f"{root}: {', '.join(f'{n}/' for n in splits.values())} but no train/", EXPECTED)
    others = [name for name in inside if name not in splits.values()]
    notes = [f"not used: {', '.join(f'{name}/' for name in others)} beside {splits['train']}/"] if others else []
    return build_listing(str(root), {s: _class_folders(root, root / n) for s, n in splits.items()}, notes)


def _entries(folder: Path) -> list[Path]:
    try:
        return [p for p in folder.iterdir() if not is_hidden(p.name)]
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}", EXPECTED) from None


def _class_folders(root: Path, folder: Path) -> dict[str, list[Item]]:
    """Class name -> its images, from the folders in `folder`, at any depth."""
    entries = _entries(folder)
    classes = sorted(p.name for p in entries if p.is_dir())
    loose = sum(p.is_file() and p.suffix.lower() in SUFFIXES for p in entries)
    if loose and not classes:
        raise InputError(f"{folder}: {loose} images directly in it and no class folders", EXPECTED)
    if not classes:
        raise InputError(f"{folder}: no class folders in it", EXPECTED)
    if loose:
        raise InputError(f"{folder}: {loose} images beside the class folders", "move each into its class folder")
    return {name: sorted(_images(root, folder / name), key=lambda item: item.name) for name in classes}


def _images(root: Path, folder: Path) -> Iterator[Item]:
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
        raise InputError(f"{folder}: an empty class: no images in it{there}", "remove it, or put its images there")


def _files(folder: str) -> Iterator[os.DirEntry[str]]:
    """Every file below `folder` that is not hidden. Links to folders are not followed, since they may form a cycle."""
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
        raise InputError(f"{file}: {error.strerror}", "a broken link?") from None
    if stat.st_size > MAX_FILE:
        raise InputError(f"{file}: {stat.st_size} bytes", f"expected an image of at most {MAX_FILE}")
    return Item(name, -1, file, stat.st_size, (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino))


def _from_table(path: Path, image: str, label: str) -> Listing:
    """``path,label[,split]`` with a header, or other column names; paths are relative to the table's folder."""
    expected = f"{image},{label}[,split]"
    try:
        with path.open(encoding="utf-8-sig", newline="") as table:
            reader = csv.reader(table, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            rows = list(enumerate(reader, 1))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a table of text: {error}", f"expected {expected} with a header") from None
    head = [cell.strip().lower() for cell in rows[0][1]] if rows else []
    if image not in head or label not in head:
        raise InputError(f"{path}:1: columns {', '.join(head) or 'none'}", f"expected a header {expected}")
    found: dict[str, dict[str, list[Item]]] = {"train": {}}
    for line, cells in rows[1:]:
        if not any(cell.strip() for cell in cells):
            continue
        row = dict(zip(head, cells, strict=False))
        name, kind = row.get(image, "").strip(), row.get(label, "").strip()
        split = SPLITS.get(row.get("split", "").strip().lower() or "train")
        if not name or not kind:
            raise InputError(f"{path}:{line}: no {image if not name else label}", f"expected {expected}")
        if split is None:
            raise InputError(f"{path}:{line}: split {row['split']!r}", "expected train, val or test")
        file = path.parent / name
        if not file.is_file():
            raise InputError(f"{path}:{line}: no file {name}", f"paths are relative to {path.parent}")
        found.setdefault(split, {}).setdefault(kind, []).append(_item(str(file), name))
    if not found["train"]:
        raise InputError(f"{path}: no rows of split train", f"expected {expected}")
    return build_listing(str(path), found)
