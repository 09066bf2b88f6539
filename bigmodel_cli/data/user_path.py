"""``--data PATH``: selects the registered data set that reads a given path."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.files.remote_files import is_remote, local_copy
from bigmodel_cli.core.readers.columns import OPTIONAL, RepeatedColumnError, by_number, choose_columns
from bigmodel_cli.core.readers.tables import (
    JSON,
    JSON_LINES,
    first_columns,
    read_first_columns,
    table_suffix,
    tables_in,
    without_shard,
)
from bigmodel_cli.core.registry import data
from bigmodel_cli.core.splits import splits_among

CERTAIN = 10
"""The score of a data set whose own mark is there, such as the index of token shards."""
PLAIN_TEXT = (".txt", ".text", ".md")
TEXT = (*PLAIN_TEXT, *JSON_LINES)

Reads = Callable[["UserPath"], float]
"""Scores how well a data set fits a path: 0 if it cannot read it; the highest wins. Above 1, content was checked."""


@dataclass(frozen=True)
class UserPath:
    """The value of ``--data``: a path, an address, or a pattern of paths; and the value of ``--columns``."""

    text: str
    given: Mapping[str, str] = field(default_factory=dict)

    @functools.cached_property
    def path(self) -> Path:
        return local_copy(self.text) if is_remote(self.text) else Path(self.text).expanduser()

    @property
    def suffix(self) -> str:
        return self.path.suffix.lower()

    @property
    def is_address(self) -> bool:
        """Whether it begins with a scheme, such as ``https:`` or ``hf:``, and is read there, not from a copy."""
        return re.match(r"[a-z]+:", self.text) is not None and not is_remote(self.text)

    @property
    def is_pattern(self) -> bool:
        """Whether it is a pattern of several tar files, such as ``train-{000..099}.tar``."""
        return self.text.endswith(".tar") and any(sign in self.text for sign in "{*")

    @functools.cached_property
    def is_dir(self) -> bool:
        return self.path.is_dir()

    @functools.cached_property
    def table(self) -> Path | None:
        """The table there, whose columns say what it is: the file itself, or that of a split in a folder."""
        if not self.is_dir:
            return self.path if table_suffix(self.path) else None
        tables = {without_shard(f): f for f in reversed(tables_in(self.path))}
        splits = splits_among(tables)
        first = next((name for name, split in splits.items() if split == "train"), next(iter(splits), None))
        if first is None and len(tables) == 1 and not any(f.is_dir() for f in self.path.iterdir()):
            first = next(iter(tables))
        return tables[first] if first is not None else None

    @functools.cached_property
    def columns(self) -> tuple[str, ...]:
        """The plain names of the table's columns; empty without a table, or if it cannot be read."""
        return first_columns(self.table) if self.table is not None else ()

    def has_columns(self, roles: Sequence[str]) -> bool:
        """Whether the table has columns for all of `roles`, by the same rules as when it is read."""
        if self.table is None or not self.columns:
            return False
        json = table_suffix(self.table) in JSON
        try:
            choose_columns("", self.columns, (*roles, *OPTIONAL), self.given, by_number(self.given), not json)
        except RepeatedColumnError:
            return True  # what reads the table says so
        except InputError:
            return False
        return True


def rows_with(*choices: tuple[str, ...], score: float, tables: bool = False) -> Reads:
    """Fits JSON lines (and, with `tables`, tables) that have columns for all the roles of one of `choices`."""

    def reads(given: UserPath) -> float:
        if given.table is None or not (tables or table_suffix(given.table) in JSON):
            return 0
        return score * any(given.has_columns(roles) for roles in choices)

    return reads


def source_for(path: str | Path, columns: Mapping[str, str] | None = None, task: str | None = None) -> str | None:
    """The data set whose registered ``reads`` gives `path` the highest score; None if no data set reads it.

    A data set that names `tasks` is for these alone.

    Raises:
        InputError: it is a table whose columns fit none; the message lists them.
    """
    given = UserPath(str(path), columns or {})
    readers = {name: found.meta.get("tasks", ()) for name, found in data.found.items() if "reads" in found.meta}
    named = any(task in tasks for tasks in readers.values())
    sources = [name for name, tasks in readers.items() if (task in tasks if named else not tasks)]
    scores = {name: data.get(name).meta["reads"](given) for name in sources}
    best = max(scores, key=lambda name: scores[name], default=None)
    if best is not None and scores[best] >= CERTAIN:  # its table is not a table of samples
        return best
    lines = given.table is not None and table_suffix(given.table) in JSON_LINES  # their reader names the line
    if given.table is not None and not lines and not given.columns and given.path.exists():
        read_first_columns(given.table)  # raises what is wrong with it, whatever else could read it as plain text
    if best is not None and scores[best]:
        return best
    if given.table is not None and given.path.exists():
        there = ", ".join(name or "(no name)" for name in given.columns[:8])
        hint = "--columns text=NAME,label=NAME (or image=, source= and target=; label=A+B for one-hot columns), "
        hint += "or numbers if there is no header"
        raise InputError(
            f"{given.table}: columns {there or 'none'}", "expected text and label, or image and label", hint
        )
    return None
