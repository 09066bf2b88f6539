"""The values of a column of your own table, sample by sample."""

from __future__ import annotations

from pathlib import Path

from bigmodel_cli.core.files.remote_files import is_remote, local_copy
from bigmodel_cli.core.readers.tables import open_table
from bigmodel_cli.core.readers.text_files import AUTO
from bigmodel_cli.core.splits import name_hash
from bigmodel_cli.data.user_data.image_huggingface import SCHEME, is_saved, values_of
from bigmodel_cli.data.user_data.text_tables import split_files


def group_names(path: str, column: str, encoding: str = AUTO) -> dict[int, str]:
    """Each value of `column` in the table, or folder of tables, at `path`, by the hash that ``groups`` has for it.

    A Hugging Face data set has columns too.

    Raises:
        InputError: it is no table, or has no such column.
    """
    if path.startswith(SCHEME) or is_saved(Path(path)):
        return {name_hash(f"group {value}"): str(value) for value in values_of(path, column) if value is not None}
    found: dict[int, str] = {}
    where = local_copy(path) if is_remote(path) else Path(path).expanduser()
    for _, file in split_files(where, []):
        table = open_table(file, ("group",), {"group": column}, encoding, [])
        for _, (value,) in table.rows("group"):
            if value is not None:
                found.setdefault(name_hash(f"group {value}"), str(value))
    return found
