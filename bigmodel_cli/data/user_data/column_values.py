"""The values of a column of your own table, sample by sample."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bigmodel_cli.core.readers.tables import open_table
from bigmodel_cli.core.readers.text_files import AUTO
from bigmodel_cli.core.splits import name_hash
from bigmodel_cli.data.user_data.text_tables import split_files


def group_names(
    path: Path, column: str, columns: Mapping[str, str] | None = None, encoding: str = AUTO
) -> dict[int, str]:
    """Each value of `column` in the table, or folder of tables, at `path`, by the hash that ``groups`` has for it.

    Raises:
        InputError: it is no table, or has no such column.
    """
    found: dict[int, str] = {}
    for _, file in split_files(path, []):
        table = open_table(file, ("group",), {**(columns or {}), "group": column}, encoding, [])
        for _, (value,) in table.rows("group"):
            found.setdefault(name_hash(f"group {value}"), str(value))
    return found
