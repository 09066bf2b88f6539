"""Find images and their classes: in class folders, a table of paths, a tar, shards or a data set.

Nothing is decoded here. A wrong layout is reported in one line.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.image.image_names import is_hidden
from bigmodel_cli.core.image.images import image_suffixes
from bigmodel_cli.core.readers.columns import USUAL
from bigmodel_cli.core.readers.tables import SUFFIXES, first_columns, table_suffix
from bigmodel_cli.core.readers.text_files import AUTO
from bigmodel_cli.core.splits import split_of, splits_among
from bigmodel_cli.data.image.class_folders import Folder, arrange
from bigmodel_cli.data.image.listing import NO_TRAIN, Listing, file_item
from bigmodel_cli.data.user_data.folder_walk import list_files
from bigmodel_cli.data.user_data.image_huggingface import SCHEME, from_hub, is_saved
from bigmodel_cli.data.user_data.image_table import from_table
from bigmodel_cli.data.user_data.image_tar import from_tar
from bigmodel_cli.data.user_data.image_zip import from_zip
from bigmodel_cli.data.webdataset.images import from_shards, is_shard
from bigmodel_cli.data.webdataset.index import expand_pattern, is_pattern

ZIP = ".zip"
OTHERS = {
    **dict.fromkeys((".xlsx", ".xls", ".ods", ".numbers"), "save it as .csv, a sheet a file"),
    **dict.fromkeys((".7z", ".rar", ".zst", ".lz4", ".lzma", ".z"), "unpack it, then --data what is in it"),
    **dict.fromkeys((".feather", ".arrow", ".orc"), "save it as .parquet"),
    **dict.fromkeys((".dta", ".sav", ".rds", ".h5", ".hdf5"), "save it as .csv"),
    **dict.fromkeys((".pkl", ".pickle", ".npy", ".npz", ".mat"), "save its images as .png in a folder a class"),
    **dict.fromkeys((".dat", ".data", ".asc"), "if it is a table, call it .csv or .tsv"),
    **dict.fromkeys((".sqlite", ".db", ".xml", ".arff", ".libsvm", ".svm"), "save it as .csv"),
}
"""Suffixes of files that are not read, and what to do with such a file."""
TARS = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2")


def list_images(
    where: str | Path,
    columns: Mapping[str, str] | None = None,
    group_by: str | None = None,
    encoding: str = AUTO,
) -> Listing:
    """List the images at `where`: class folders, a table, a tar, shards, or a Hugging Face data set.

    `columns` are those of the image and the label in a table or a data set; the label is also the field in a shard's
    JSON. `group_by` is the column, or the field, whose equal values stay on one side of a split. `encoding` is that
    of a table.

    Raises:
        InputError: nothing is there, or the layout is wrong; the message says how.
        MachineError: a required library is missing, or the network is unreachable.
    """
    if str(where).startswith(SCHEME):
        return from_hub(str(where), **_named(columns, "image", "label"), group_by=group_by)
    path = Path(where).expanduser().absolute()
    name = path.name.lower()
    if not path.exists():
        if is_pattern(str(path)):
            return from_shards(str(path), expand_pattern(str(path)), **_named(columns, "label"), group_by=group_by)
        raise InputError(f"{path}: no such folder or file", NO_TRAIN)
    if path.is_dir():
        if is_saved(path):
            return from_hub(str(path), **_named(columns, "image", "label"), group_by=group_by)
        if shards := _find_shards(path):
            return from_shards(str(path), shards, **_named(columns, "label"), group_by=group_by)
        _check_no_columns(path, columns, group_by)
        return _from_folder(path)
    if table_suffix(path):
        return from_table(path, columns, group_by, encoding)
    if name.endswith(".tar") and is_shard(path):
        return from_shards(str(path), [path], **_named(columns, "label"), group_by=group_by)
    if name.endswith((*TARS, ZIP)):
        _check_no_columns(path, columns, group_by)
        return from_zip(path) if name.endswith(ZIP) else from_tar(path)
    what = f"{path}: neither a folder, a table (.csv, .tsv, .jsonl), a tar nor a zip"
    raise InputError(what, NO_TRAIN, OTHERS.get(path.suffix.lower()))


def _named(columns: Mapping[str, str] | None, *roles: str) -> dict[str, str | None]:
    """The columns of `roles`.

    Raises:
        InputError: there are columns for other roles.
    """
    for role in columns or {}:
        if role not in roles:
            raise InputError(f"--columns {role}=...", f"expected {', '.join(roles)} here")
    return {role: (columns or {}).get(role) for role in roles}


def _check_no_columns(path: Path, columns: Mapping[str, str] | None, group_by: str | None) -> None:
    """Refuse columns for data that has none.

    Raises:
        InputError: some are given.
    """
    for flag, given in (("--columns", columns), ("--group-by", group_by)):
        if given:
            hint = f"leave {flag} out, or list the images in a table"
            raise InputError(f"{path}: {flag} for class folders", "expected a table, which has columns", hint)


def _find_shards(root: Path) -> list[Path]:
    """The tars in `root` or in its split folders."""
    folders = {p.name: p for p in _entries(root) if p.is_dir()}
    splits = [folders[name] for name in splits_among(folders)]
    return sorted(p for folder in (root, *splits) for p in _entries(folder) if p.suffix.lower() == ".tar")


def _entries(folder: Path) -> list[Path]:
    try:
        return [p for p in folder.iterdir() if not is_hidden(p.name)]
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}", NO_TRAIN) from None


def _from_folder(root: Path) -> Listing:
    notes: list[str] = []
    tree = list_files(str(root), image_suffixes(), notes)
    flat = [
        Path(child.path)
        for child in tree.children.values()
        if split_of(child.name) and set(SUFFIXES) & set(child.others)
    ]
    tables = [p for folder in (root, *flat) for p in _entries(folder) if table_suffix(p)]
    wanted = sorted(filter(_names_images, tables), key=lambda p: (not _is_for_training(p), p.name))
    if wanted and not any(child.full for child in tree.children.values()):
        names = " and ".join(str(p.relative_to(root)) for p in wanted[:3])
        hint = f"--data {wanted[0]} reads the labels in it"
        raise InputError(f"{root}: images without class folders, and a table {names}", "expected either", hint)
    _refuse_boxes_and_masks(root, tree)
    listing = arrange(str(root), tree, lambda image: file_item(image, image[len(str(root)) + 1 :].replace(os.sep, "/")))
    return replace(listing, notes=(*notes, *listing.notes))


def _names_images(table: Path) -> bool:
    return bool(set(USUAL["image"]) & set(first_columns(table)))


def _is_for_training(table: Path) -> bool:
    """Whether it is of no test split, and no example of a competition's answer, whose labels are no real ones."""
    words = ("submission", "submit", "test")
    return split_of(table.parent.name) in (None, "train") and not any(w in table.name.casefold() for w in words)


PAIRED = ("masks", "mask", "labels", "annotations", "segmentations", "gt", "ground_truth")
"""Folders beside ``images/`` that hold a mask or boxes for each image."""


def _refuse_boxes_and_masks(root: Path, tree: Folder) -> None:
    """Refuse the layouts of object detection and segmentation, whose folders are no classes.

    Raises:
        InputError: it is one of them.
    """
    for folder in tree.below():
        inside = {name.casefold(): child for name, child in folder.children.items()}
        pictures = next((inside[name] for name in ("images", "image", "imgs", "jpegimages") if name in inside), None)
        others = [name for name in PAIRED if name in inside and inside[name] is not pictures]
        if pictures is None or not pictures.count() or not others or len(inside) - len(others) > 2:
            continue
        stems = {Path(image).stem for part in pictures.below() for image in part.images}
        masks = {Path(image).stem for part in inside[others[0]].below() for image in part.images}
        if masks and len(stems & masks) * 2 < len(masks):
            continue  # two classes that happen to be called so
        what = f"{folder.path}: {pictures.name}/ beside {inside[others[0]].name}/, as for object detection or masks"
        raise InputError(what, "expected a folder a class", "boxes and masks are not read; list image,label in a table")
