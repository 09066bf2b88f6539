"""The user's own images with several labels, or with numbers: a table, or class folders with links."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.readers.columns import Columns, GroupBy, TableEncoding
from bigmodel_cli.core.readers.text_files import AUTO
from bigmodel_cli.core.registry import data
from bigmodel_cli.core.specs import Interpolation
from bigmodel_cli.core.types import DataBundle, Spec
from bigmodel_cli.data.image.listing import Item
from bigmodel_cli.data.image.reading import Cache, Channels, Crop, Reading, Size
from bigmodel_cli.data.image.value_range import Given
from bigmodel_cli.data.targets import MULTI_LABEL, SEPARATOR, Labels, Separator, named_task, with_targets
from bigmodel_cli.data.user_data.image_discovery import list_images
from bigmodel_cli.data.user_data.image_table import image_rows
from bigmodel_cli.data.user_data.text_tables import label_columns
from bigmodel_cli.data.user_path import UserPath

ROLES = ("image", "label")
Splits = Mapping[str, list[Item]]


def _is_images(given: UserPath) -> float:
    """Tables with an image, and folders."""
    return 1.5 * given.has_columns(ROLES) if given.table is not None and not given.is_dir else 0.5


@data.register(tasks=("multi_label_classification", "regression"), reads=_is_images, next="train resnet18")
def image_targets(
    root: Path,
    like: Spec | None = None,
    task: str | None = None,
    fits: bool = False,
    *,
    path: str,
    size: Size = None,
    crop: Crop = None,
    interpolation: Interpolation | None = None,
    channels: Channels = 3,
    value_range: Given = None,
    skip_bad: bool = False,
    cache: Cache = "auto",
    columns: Columns | None = None,
    group_by: GroupBy = None,
    encoding: TableEncoding = AUTO,
    separator: Separator = SEPARATOR,
) -> DataBundle:
    """Your own images with several labels or with numbers: a table, or folders of links, one a label."""
    where, notes = Path(path).expanduser().absolute(), list[str]()
    is_table = UserPath(str(where), columns or {}).table is not None
    if is_table:
        labels = Labels(named_task(task), label_columns(where, ROLES, columns, group_by, encoding), separator)
        splits = _from_table(where, labels, columns, group_by, encoding, notes)
    else:
        splits, labels = _from_folders(where, named_task(task), columns, group_by, notes)
    notes += labels.notes([item.label for item in splits.get("train", ())])
    reading = Reading(size, crop, interpolation, channels, value_range, skip_bad, cache)
    spec, files = reading.open(splits, labels.names(), like, fits, notes)
    load, targets = with_targets(files, labels)
    total = hashlib.sha256(targets.numpy().tobytes())
    for item in splits["train"] if "train" in splits else next(iter(splits.values())):
        total.update(f"{item.name}:{item.size}\n".encode("utf-8", "surrogateescape"))
    return DataBundle(spec, load, total.hexdigest(), notes)


def _from_table(
    path: Path,
    labels: Labels,
    columns: Mapping[str, str] | None,
    group_by: str | None,
    encoding: str,
    notes: list[str],
) -> Splits:
    splits: dict[str, list[Item]] = {}
    for row in image_rows(path, ("label",), columns, group_by, notes, encoding, apart=("label",)):
        row.item.label = labels.add(row.values[0], row.where)
        splits.setdefault(row.split, []).append(row.item)
    return splits


def _from_folders(
    path: Path, task: str, columns: Mapping[str, str] | None, group_by: str | None, notes: list[str]
) -> tuple[Splits, Labels]:
    """An image linked into several class folders has each of these labels; for numbers a folder's name is the number.

    Raises:
        InputError: a name is no number.
    """
    listing = list_images(path, columns, group_by)
    notes += listing.notes
    labels = Labels(task, ("labels",) if task == MULTI_LABEL else ("value",))
    splits: dict[str, list[Item]] = {}
    several = 0
    for split, items in listing.splits.items():
        once: dict[tuple[object, ...], tuple[Item, list[str]]] = {}
        for item in items:
            same = (item.stamp, item.size, item.offset)  # a link has the stamp of what it points to
            once.setdefault(same, (item, []))[1].append(listing.classes[item.label])
        for item, names in once.values():
            several += len(names) > 1
            if task != MULTI_LABEL and len(names) > 1:
                raise InputError(f"{item.location}: in the folders {' and '.join(names)}", "expected one number")
            item.label = labels.add([names] if task == MULTI_LABEL else names, f"folder {names[0]}")
        splits[split] = sorted((item for item, _ in once.values()), key=lambda item: item.name)
    if task == MULTI_LABEL and not several:
        notes.append("no image is linked into two class folders, so each has one label")
    return splits, labels
