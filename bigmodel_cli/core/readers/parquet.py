"""Rows of Parquet files, as those of JSON: an object of plain values by column."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bigmodel_cli.core.errors import InputError, MachineError
from bigmodel_cli.core.extras import install_line
from bigmodel_cli.core.files.regular_files import regular_stat
from bigmodel_cli.core.readers.text_files import MAX_GROWTH, MIN_GROWN

PARQUET = ".parquet"
FEATURES = b"huggingface"
"""The key of the metadata with which Hugging Face's datasets name the classes of an integer column."""


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The open file.

    Raises:
        InputError: it is damaged, or no regular file, or no Parquet file.
        MachineError: pyarrow is not installed.
    """
    try:
        from pyarrow import lib, parquet
    except ImportError:
        raise MachineError(f"{path}: pyarrow is not installed", hint=install_line("parquet")) from None
    regular_stat(path)
    try:
        with parquet.ParquetFile(path) as file:
            leaves = [file.schema.column(i) for i in range(len(file.schema.names))]
            texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
        # As codes into a dictionary, a text that is repeated a million times takes the memory of one.
        with parquet.ParquetFile(path, read_dictionary=texts) as file:
            yield file
    except (lib.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {str(error).splitlines()[0]}", "expected a Parquet file") from None


def parquet_columns(path: Path) -> list[str]:
    """The names of the columns.

    Raises:
        InputError, MachineError: see :func:`read_parquet`.
    """
    with _opened(path) as file:
        return list(file.schema_arrow.names)


def read_parquet(path: Path, names: Sequence[str]) -> Iterator[tuple[int, list[Any]]]:
    """The number of each row, from 1, and its values in the columns `names`. Numbers of named classes are their names.

    Raises:
        InputError: the file is damaged, or no Parquet file.
        MachineError: pyarrow is not installed.
    """
    with _opened(path) as file:
        left = max(MIN_GROWN, MAX_GROWTH * path.stat().st_size)
        groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
        if sum(g.column(i).total_uncompressed_size for g in groups for i in range(g.num_columns)) > left:
            raise _grows(path)
        classes = _class_names((file.schema_arrow.metadata or {}).get(FEATURES, b"{}"))
        number = 0
        for batch in file.iter_batches(columns=list(names)):
            left -= sum(map(_expanded, batch.columns)) + len(batch)
            if left < 0:
                raise _grows(path)
            columns = [_named(_values(batch.column(name)), classes.get(name)) for name in names]
            for values in zip(*columns, strict=True):
                number += 1
                yield number, list(values)


def _grows(path: Path) -> InputError:
    what = f"{path}: refused: its rows take more than {MAX_GROWTH} times its size"
    return InputError(what, "expected a table", "save it as CSV, where you trust it")


def _expanded(column: Any) -> int:
    """The bytes of the values in an Arrow array, each counted as often as it is there."""
    if hasattr(column, "dictionary"):
        from pyarrow import compute

        sizes = compute.binary_length(column.dictionary)
        return column.indices.nbytes + (compute.sum(sizes.take(column.indices)).as_py() or 0)  # type: ignore[no-any-return]
    if hasattr(column, "keys"):
        inner = [column.keys, column.items]
    elif hasattr(column, "field"):
        inner = [column.field(i) for i in range(column.type.num_fields)]
    else:
        inner = [column.flatten()] if hasattr(column, "value_lengths") else []
    return sum(map(_expanded, inner)) if inner else column.nbytes  # type: ignore[no-any-return]


def _values(column: Any) -> list[Any]:
    """The values in an Arrow array; equal texts of a dictionary are one object."""
    if not hasattr(column, "dictionary"):
        return column.to_pylist()  # type: ignore[no-any-return]
    texts = column.dictionary.to_pylist()
    return [None if code is None else texts[code] for code in column.indices.to_pylist()]


def _named(values: list[Any], names: Sequence[str] | None) -> list[Any]:
    if names is None:
        return values
    return [names[v] if type(v) is int and 0 <= v < len(names) else None for v in values]


def _class_names(raw: bytes) -> dict[str, list[str]]:
    """Column -> the names of its classes, from the metadata `raw` of Hugging Face's datasets."""
    found: dict[str, list[str]] = {}
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError, AttributeError):
        for column, feature in json.loads(raw)["info"]["features"].items():
            names = feature.get("names") if isinstance(feature, dict) else None
            if isinstance(names, list) and all(isinstance(name, str) for name in names):
                found[column] = names
    return found
