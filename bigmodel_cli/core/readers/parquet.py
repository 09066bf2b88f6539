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
            yield file
    except (lib.ArrowException, OSError) as error:
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
        classes = _class_names((file.schema_arrow.metadata or {}).get(FEATURES, b"{}"))
        number = 0
        for batch in file.iter_batches(columns=list(names)):
            columns = [_named(batch.column(name).to_pylist(), classes.get(name)) for name in names]
            for values in zip(*columns, strict=True):
                number += 1
                yield number, list(values)


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
