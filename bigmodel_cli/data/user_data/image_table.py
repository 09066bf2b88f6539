"""Images and their labels in a table: CSV, TSV or JSON with a column of files; or a folder of one table a split."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigmodel_cli.core.counted import counted
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.image.image_names import ImageNames, is_hidden
from bigmodel_cli.core.image.images import image_suffixes
from bigmodel_cli.core.one_hot import has_several, one_label
from bigmodel_cli.core.readers.label_cells import LabelCells
from bigmodel_cli.core.readers.tables import Table, as_text
from bigmodel_cli.core.readers.text_files import AUTO
from bigmodel_cli.data.image.listing import Item, Listing, build_listing, file_item
from bigmodel_cli.data.user_data.text_tables import find_splits


@dataclass(frozen=True)
class ImageRow:
    """An image of a table, the location of its row, and the values of the other roles that were asked for."""

    split: str
    item: Item
    where: str
    values: Sequence[Any]
    table: Table


def image_rows(
    path: Path,
    roles: Sequence[str],
    columns: Mapping[str, str] | None,
    group_by: str | None,
    notes: list[str],
    encoding: str = AUTO,
    apart: Sequence[str] = (),
) -> Iterator[ImageRow]:
    """The images of the table at `path` with the values of `roles`, which must have columns.

    Files are found from the table's folder; see :class:`ImageNames`. An image in several rows of a split is read from
    the first; images beside those of the table that no row names are counted in `notes`. The values of the roles in
    `apart` are lists of cells.

    Raises:
        InputError: a row names no file, or a file again with other values or in another split.
    """

    def accept(table: Table, line: int, split: str, values: list[Any]) -> str | None:
        name = as_text(values[0], table.located(line), "image").strip()
        if not name:
            what = f"{table.located(line)}: no {table.chosen.named('image')}"
            raise InputError(what, "expected an image in each row")
        return None

    seen: dict[str, tuple[str, list[Any], str]] = {}
    again = 0
    found = find_splits(path, ("image", *roles), columns, group_by, encoding, notes, accept, apart)
    names = ImageNames(path if path.is_dir() else path.parent)
    for split, rows in found.items():
        for table, line, (image, *values, group) in rows.values("image", *roles, "group"):
            where, name = table.located(line), str(image).strip()
            file = names.find(name, where)
            before = seen.setdefault(file, (split, values, where))
            if before[2] != where:
                if before[:2] != (split, values):
                    first = before[2].rpartition(":")[2]
                    raise InputError(
                        f"{where}: {name} is also in row {first}, with another label or split", "once each"
                    )
                again += 1
                continue
            item = file_item(file, name)
            item.group = "" if group is None else f"group {group}"
            yield ImageRow(split, item, where, values, table)
    notes += [f"{counted(again, 'row')} not used: an image that an earlier row names"] if again else []
    notes += [f"images found in {folder}/: {n:,}" for folder, n in sorted(names.elsewhere.items())[:3]]
    unlisted = _unlisted(seen)
    notes += [f"{counted(unlisted, 'image')} not used: in no row of the table"] if unlisted else []


def _unlisted(used: Mapping[str, Any]) -> int:
    """How many images lie beside the `used` files."""
    total = 0
    for folder in {os.path.dirname(file) for file in used}:  # noqa: PTH120
        with os.scandir(folder) as entries:
            for entry in entries:
                kind = entry.name[entry.name.rfind(".") :].lower()
                total += kind in image_suffixes() and not is_hidden(entry.name) and entry.path not in used
    return total


def from_table(
    path: Path, columns: Mapping[str, str] | None = None, group_by: str | None = None, encoding: str = AUTO
) -> Listing:
    """The images of the table at `path`, with one label each.

    Raises:
        InputError: see :func:`image_rows`.
    """
    notes: list[str] = []
    cells = LabelCells("label")
    found: dict[str, dict[str, list[Item]]] = {}
    several = has_several(columns)
    apart = ("label",) if several else ()
    for row in image_rows(path, ("label",), columns, group_by, notes, encoding, apart):
        value = one_label(row.table, row.values[0], row.where) if several else row.values[0]
        label = cells.read(value, lambda row=row: row.where)  # type: ignore[misc]
        found.setdefault(row.split, {}).setdefault(label, []).append(row.item)
    classes = {label for labels in found.values() for label in labels}
    return build_listing(str(path), found, [*notes, *cells.notes(sorted(classes))])
