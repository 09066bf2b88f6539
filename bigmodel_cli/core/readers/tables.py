"""The one reader of tables: CSV, TSV and their kin, JSON lines and JSON arrays, row by row in bounded memory.

What a file leaves open (its encoding, separator, quoting, header) is decided from its content; a decision that the
suffix does not imply is noted. A row that does not fit is an error that names its line.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bigmodel_cli.core.counted import counted
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.files.compressed import without_compression
from bigmodel_cli.core.readers.columns import ABSENT, Chosen, choose_columns, plain_name
from bigmodel_cli.core.readers.delimited import Dialect, find_dialect
from bigmodel_cli.core.readers.json_lines import (
    MAX_LINE_CHARS,
    kind_of,
    object_keys,
    read_objects,
    text_problem,
    value_inside,
)
from bigmodel_cli.core.readers.parquet import PARQUET, parquet_columns, read_parquet
from bigmodel_cli.core.readers.text_files import AUTO, BLOCK, find_encoding, read_blocks

SEPARATED = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".psv": "|", ".inter": "\t"}
"""Suffix -> the separator that it implies."""
JSON_LINES = (".jsonl", ".ndjson")
JSON = (*JSON_LINES, ".json")
SUFFIXES = (*SEPARATED, *JSON, PARQUET)
SHARD = re.compile(r"[-_]\d+[-_]of[-_]\d+$")
MISSING = object()
"""The value of a key that a JSON object does not have."""
AROUND = re.compile("^[\\s\u200b-\u200f\u2060\ufeff]+|[\\s\u200b-\u200f\u2060\ufeff]+$")
"""What is removed around a label: blanks, and characters without a width."""
csv.field_size_limit(MAX_LINE_CHARS)


def table_suffix(path: Path | str) -> str:
    """The suffix that says how the table is written, without that of its compression; empty if it is no table's."""
    name = without_compression(Path(path).name)
    suffix = name[name.rfind(".") :] if "." in name else ""
    return suffix if suffix in SUFFIXES else ""


def tables_in(folder: Path) -> list[Path]:
    """The tables in a folder, sorted; or those in its folder ``data``, as data sets are published at Hugging Face."""
    for place in (folder, folder / "data"):
        found = sorted(f for f in place.iterdir() if table_suffix(f) and f.is_file()) if place.is_dir() else []
        if shown := [f for f in found if not f.name.startswith(".")]:
            return shown
    return []


def without_shard(table: Path) -> str:
    """The name of a table without its suffixes and number: ``train`` of ``train-00000-of-00002.parquet``."""
    return SHARD.sub("", table.name.partition(".")[0])


@dataclass
class Table:
    """A table whose columns are chosen; see :func:`open_table`.

    A value is text, or for JSON what JSON has: text, a number, true or false, null, a list or an object.
    """

    path: Path
    chosen: Chosen
    encoding: str
    dialect: Dialect | None
    """None for JSON and Parquet."""
    notes: list[str]
    apart: frozenset[str] = frozenset()
    """The roles whose value is the list of their cells, also of a single one."""
    blank: int = 0
    """Rows without anything in them, which the last pass skipped."""
    repeats: int = 0
    """Rows that are the header again, as of files that were joined, which the last pass skipped."""
    _told: bool = field(default=False, repr=False)

    def rows(self, *roles: str) -> Iterator[tuple[int, list[Any]]]:
        """The line and the value of each of `roles` in every row; None for a role without a column.

        Several columns of a role are joined by a blank, as text; those of a role in `apart` are a list.

        Raises:
            InputError: a row cannot be read, or has more or fewer cells than the header; the message names its line.
        """
        places = [self.chosen.places.get(role) for role in roles]
        apart = [role in self.apart for role in roles]
        single = [-1 if at is None else at[0] for at in places]
        plain = all(at is None or len(at) == 1 for at in places) and not any(apart)
        if self.dialect is not None and plain:
            for line, cells in self._cells(self.dialect):
                yield line, [cells[i] if i >= 0 else None for i in single]
        elif self.dialect is not None:
            for line, cells in self._cells(self.dialect):
                yield line, [_value(cells, at, each) for at, each in zip(places, apart, strict=True)]
        else:
            for line, row in self._objects():
                values = [_value(row, at, each) for at, each in zip(places, apart, strict=True)]
                if any(value is MISSING for value in values):
                    values = [self._present(line, role, value) for role, value in zip(roles, values, strict=True)]
                yield line, values
        if (self.blank or self.repeats) and not self._told:
            self._told = True
            if self.blank:
                self.notes.append(f"{self.path.name}: {counted(self.blank, 'empty row')} not used")
            if self.repeats:
                self.notes.append(f"{self.path.name}: {counted(self.repeats, 'row')} not used: the header again")

    def whole_rows(self) -> Iterator[tuple[int, list[Any]]]:
        """The line and all values of every row, in the order of the columns; None for a key that is not there.

        Raises:
            InputError: as :meth:`rows`.
        """
        if self.dialect is not None:
            yield from ((line, list(cells)) for line, cells in self._cells(self.dialect))
            return
        for line, row in self._objects(every=True):
            yield line, [None if value is MISSING else value for value in row]

    def _present(self, line: int, role: str, value: Any) -> Any:
        if value is not MISSING:
            return value
        if role in ABSENT:
            return None
        raise InputError(f"{self.located(line)}: no {self.chosen.named(role)!r}", "expected it in every row")

    def located(self, line: int) -> str:
        """The location to show to the user."""
        return f"{self.path}: row {line}" if table_suffix(self.path) == PARQUET else f"{self.path}:{line}"

    def _cells(self, dialect: Dialect) -> Iterator[tuple[int, Sequence[str]]]:
        self.blank, self.repeats, width = 0, 0, len(self.chosen.names)
        header = list(self.chosen.names) if dialect.header else None
        for line, cells in dialect.read(self.path, self.encoding):
            if len(cells) != width:
                if not any(cell.strip() for cell in cells):
                    self.blank += len(cells) > 0
                    continue
                what = f"{self.path}:{line}: {_count(len(cells))}"
                raise InputError(
                    what, f"the {'header' if dialect.header else 'first row'} has {width}", _quoting(dialect)
                )
            if (not cells[0] or cells[0].isspace()) and not any(cell.strip() for cell in cells):
                self.blank += 1
                continue
            if cells == header:
                self.repeats += 1
                continue
            yield line, cells

    def _objects(self, every: bool = False) -> Iterator[tuple[int, Sequence[Any]]]:
        """The values of each object; of Parquet those of the chosen columns alone, unless `every` one is wanted."""
        self.blank = 0
        names = self.chosen.names
        if table_suffix(self.path) == PARQUET:
            used = {i for places in self.chosen.places.values() for i in places}
            wanted = [i for i in range(len(names)) if every or i in used]
            place = {i: k for k, i in enumerate(wanted)}
            for number, values in read_parquet(self.path, [names[i] for i in wanted]):
                yield number, [values[place[i]] if i in place else None for i in range(len(names))]
            return
        nested = any("." in name for name in names)
        for line, row in read_objects(self.path, self.encoding):
            if nested:
                yield line, [row[name] if name in row else value_inside(row, name, MISSING) for name in names]
            else:
                yield line, [row.get(name, MISSING) for name in names]


def _count(n: int) -> str:
    return f"{n} cell{'s' * (n != 1)}"


def _quoting(dialect: Dialect) -> str | None:
    return f'a text with {dialect.shown} in it is written in quotation marks: "..."' if dialect.quoted else None


def _value(cells: Sequence[Any], places: Sequence[int] | None, apart: bool) -> Any:
    """The value of a role with columns at `places`; MISSING if one of a role that is kept `apart` is missing."""
    if places is None:
        return None
    if apart:
        picked = [cells[i] for i in places]
        return MISSING if any(cell is MISSING for cell in picked) else picked
    if len(places) == 1:
        return cells[places[0]]
    parts = [cells[i] for i in places if cells[i] is not MISSING and cells[i] is not None]
    return " ".join(text for part in parts if (text := as_text(part, "", "").strip()))


def open_table(
    path: Path,
    roles: Sequence[str],
    given: Mapping[str, str] | None = None,
    encoding: str = AUTO,
    notes: list[str] | None = None,
) -> Table:
    """Find out how the table at `path` is written and which of its columns are for `roles`.

    `given` are the columns of ``--columns``. What a person should know is added to `notes`.

    Raises:
        InputError: it is no table, is empty, or has no column for a role.
    """
    notes = [] if notes is None else notes
    given, suffix = given or {}, table_suffix(path)
    if not suffix:
        raise InputError(f"{path}: {path.suffix or 'no suffix'}", f"expected {', '.join(SUFFIXES)}")
    if suffix in JSON:
        return _open_json(path, roles, given, encoding, notes)
    if suffix == PARQUET:
        chosen = choose_columns(str(path), parquet_columns(path), roles, given)
        notes += [f"{path.name}: {note}" for note in chosen.notes]
        return Table(path, chosen, encoding, None, notes)
    if encoding == AUTO:
        encoding, note = find_encoding(path, read_blocks(path))
        notes += [note] if note else []
    dialect, header = find_dialect(path, encoding, SEPARATED[suffix], roles, given)
    if header is None:
        raise InputError(f"{path}: it is empty", f"expected rows with {' and '.join(roles[:2])}")
    notes += [f"{path.name}: {note}" for note in dialect.notes]
    line = f"{path}:{dialect.first_line}"
    chosen = choose_columns(line, header, roles, given, numbered=not dialect.header)
    notes += [f"{path.name}: {note}" for note in chosen.notes]
    return Table(path, chosen, encoding, dialect, notes)


def _open_json(path: Path, roles: Sequence[str], given: Mapping[str, str], encoding: str, notes: list[str]) -> Table:
    """Keys may be missing in the first object, so the columns come from all of them."""
    counts: Counter[str] = Counter()
    rows = 0
    for _, row in read_objects(path, encoding):
        rows += 1
        counts.update(object_keys(row))
    if not rows:
        raise InputError(f"{path}: it is empty", f"expected objects with {' and '.join(roles[:2])}")
    chosen = choose_columns(f"{path}:1", list(counts), roles, given, remaining=False)
    notes += [f"{path.name}: {note}" for note in chosen.notes]
    return Table(path, chosen, encoding, None, notes)


def first_columns(path: Path) -> tuple[str, ...]:
    """The plain names of the columns, to recognise what a table holds; empty if it cannot be read."""
    try:
        return read_first_columns(path)
    except (InputError, KeyError):
        return ()


def read_first_columns(path: Path) -> tuple[str, ...]:
    """The plain names of the columns of the table at `path`; empty if there is no row.

    Raises:
        InputError: its beginning cannot be read.
    """
    suffix = table_suffix(path)
    if suffix == PARQUET:
        return tuple(map(plain_name, parquet_columns(path)))
    if suffix in JSON:
        _, row = next(read_objects(path), (0, {}))
        return tuple(map(plain_name, object_keys(row)))
    block = next(read_blocks(path), b"")
    whole = block if len(block) < BLOCK else block[: block.rfind(b"\n") + 1]
    try:
        encoding = find_encoding(path, [whole])[0]
    except InputError:  # the reader says so, unless it is told the encoding; names of columns are mostly ASCII
        encoding = "latin-1"
    _, header = find_dialect(path, encoding, SEPARATED[suffix], (), {}, peek=True)
    return tuple(plain_name(name) for name in header or ())


def as_text(value: Any, where: str, column: str) -> str:
    """A cell as text; numbers are written out.

    Raises:
        InputError: it is null, true or false, a list or an object, or has a NUL or half a surrogate pair.
    """
    if isinstance(value, str):
        if "\0" in value or not value.isascii():
            wrong = "has a NUL in it" if "\0" in value else text_problem(value)
            if wrong:
                raise InputError(f"{where}: {column} {wrong}", "expected text")
        return value
    if type(value) is int:
        return str(value)
    if type(value) is float:
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    raise InputError(f"{where}: {column} is {kind_of(value)}", "expected text")
