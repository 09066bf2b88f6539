"""Tables of interactions: read, checked, coded, in a fixed order. Shapes: N interactions, U users, I items."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from bigmodel_cli.core.errors import InputError, MachineError
from bigmodel_cli.core.interactions import Column
from bigmodel_cli.core.registry import natural
from bigmodel_cli.core.text_files import read_text

Ties = Literal["hashed", "item", "file"]
NAMES = {
    "user": ("user", "user_id", "userid", "uid"),
    "item": ("item", "item_id", "itemid", "iid", "movie", "movie_id", "movieid", "product_id"),
    "rating": ("rating", "click", "score", "value"),
    "time": ("time", "timestamp", "date", "ts"),
}
"""What the columns of a table may be called."""
DELIMITERS = {".csv": ",", ".tsv": "\t", ".inter": "\t"}


@dataclass(frozen=True)
class Table:
    """N interactions of coded users and items, sorted by user, then time, then a fixed order of equal times.

    `user`, `item` (N,) int64 index `user_ids` and `item_ids`; `rating` (N,) float32; `time` (N,) int64 seconds, 0
    throughout where the table has none; `row` (N,) int64 is the position in the file.
    """

    user: Tensor
    item: Tensor
    rating: Tensor
    time: Tensor
    row: Tensor
    user_ids: tuple[str, ...]
    item_ids: tuple[str, ...]
    has_times: bool
    duplicates: int = 0

    def __len__(self) -> int:
        return len(self.user)

    @property
    def users(self) -> int:
        return len(self.user_ids)

    @property
    def items(self) -> int:
        return len(self.item_ids)

    def at(self, rows: Tensor) -> Table:
        """The interactions at `rows`, in that order."""
        parts = {name: getattr(self, name)[rows] for name in ("user", "item", "rating", "time", "row")}
        return replace(self, **parts)

    def tied(self) -> int:
        """How many interactions share their time with another one of the same user."""
        same = (self.user[1:] == self.user[:-1]) & (self.time[1:] == self.time[:-1])
        none = torch.zeros(1, dtype=torch.bool)
        return int((torch.cat([none, same]) | torch.cat([same, none])).sum())


def build_table(
    users: Sequence[str],
    items: Sequence[str],
    ratings: Sequence[float],
    times: Sequence[int] | None,
    ties: Ties,
    all_users: Iterable[str] = (),
    all_items: Iterable[str] = (),
) -> Table:
    """Code and sort interactions. Of a pair that occurs more than once the latest stays; the others are counted.

    `all_users` and `all_items` are further ids that have attributes but no interactions.
    """
    user_ids = tuple(sorted({*users, *all_users}, key=natural))
    item_ids = tuple(sorted({*items, *all_items}, key=natural))
    of_user, of_item = ({name: i for i, name in enumerate(ids)} for ids in (user_ids, item_ids))
    user = torch.tensor([of_user[name] for name in users], dtype=torch.int64)
    item = torch.tensor([of_item[name] for name in items], dtype=torch.int64)
    time = torch.tensor(times, dtype=torch.int64) if times is not None else torch.zeros(len(user), dtype=torch.int64)
    table = Table(
        user, item, torch.tensor(ratings, dtype=torch.float32), time, torch.arange(len(user)), user_ids, item_ids,
        times is not None,
    )  # fmt: skip
    order = _order(table, ties)
    table = table.at(order)
    pair = table.user * len(item_ids) + table.item
    latest = torch.full((len(user_ids) * len(item_ids),), -1, dtype=torch.int64) if _small(table) else None
    keep = _latest(pair, latest)
    return replace(table.at(keep), duplicates=len(table) - len(keep))


def _small(table: Table) -> bool:
    return table.users * table.items < 1 << 26


def _latest(pair: Tensor, scratch: Tensor | None) -> Tensor:
    """The positions of the last occurrence of each value of `pair` (N,), in order."""
    if scratch is not None:
        scratch[pair] = torch.arange(len(pair))  # later positions overwrite earlier ones on the CPU
        return (scratch[pair] == torch.arange(len(pair))).nonzero().flatten()
    order = pair.argsort(stable=True)
    last = torch.ones(len(pair), dtype=torch.bool)
    last[:-1] = pair[order][1:] != pair[order][:-1]
    return order[last].sort().values


def _order(table: Table, ties: Ties) -> Tensor:
    """By user, then time; equal times by `ties`. Only "file" depends on the order of the file."""
    order = torch.arange(len(table))
    if ties != "file":
        within = table.item if ties == "item" else _hash(table.user, table.item)
        order = order[within[order].argsort(stable=True)]
    order = order[table.time[order].argsort(stable=True)]
    return order[table.user[order].argsort(stable=True)]


def _hash(user: Tensor, item: Tensor) -> Tensor:
    """A fixed pseudo-random number of each pair, so that the order of equal times cannot be learnt from item ids."""
    x = (user * 0x9E3779B1 + item * 0x85EBCA77) & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x735A2D97) & 0xFFFFFFFF
    return x ^ (x >> 15)


def read_table(path: Path, encoding: str, ties: Ties, notes: list[str]) -> Table:
    """A table with a first line of column names: .csv, .tsv or .parquet with a user, an item, a rating, a time.

    The rating (or click) and the time may be missing: every interaction then counts 1, in the order of the file.

    Raises:
        InputError: a column is missing or a value is not a number; the message names the line.
    """
    rows = _parquet(path) if path.suffix.lower() == ".parquet" else _text(path, encoding, notes)
    users, items, ratings, times = list[str](), list[str](), list[float](), list[int]()
    for where, row in rows:
        users.append(row["user"])
        items.append(row["item"])
        ratings.append(_number(where, "rating", row.get("rating", "1")))
        if "time" in row:
            times.append(_seconds(where, row["time"]))
    if not users:
        raise InputError(f"{path}: it is empty", "expected rows with user and item")
    if not times:
        notes.append("no time column: the order of the file stands for time")
    return build_table(users, items, ratings, times or list(range(len(users))), ties)


def _number(where: str, column: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) < 1e15:
        raise InputError(f"{where}: {column} is {text[:40]!r}", "expected a number")
    return value


def _seconds(where: str, text: str) -> int:
    """Unix seconds of a number or of a date as ISO 8601 writes it; a date without a zone is UTC."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return int(_number(where, "time", text))
    return int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp())


def find_columns(path: Path, header: Iterable[str]) -> dict[str, str]:
    """Which column of `header` is the user, the item, the rating and the time.

    Raises:
        InputError: there is no user or no item.
    """
    lowered = {name.partition(":")[0].strip().lower(): name for name in header}  # RecBole writes user_id:token
    found = {key: lowered[n] for key, names in NAMES.items() for n in reversed(names) if n in lowered}
    if "user" not in found or "item" not in found:
        raise InputError(f"{path}: columns {', '.join(list(lowered)[:8])}", "expected user and item")
    return found


def _text(path: Path, encoding: str, notes: list[str]) -> Iterable[tuple[str, dict[str, str]]]:
    delimiter = DELIMITERS.get(path.suffix.lower())
    if delimiter is None:
        raise InputError(f"{path}: {path.suffix or 'no suffix'}", "expected .csv, .tsv or .parquet")
    reader = csv.DictReader(io.StringIO(read_text(path, encoding, notes)), delimiter=delimiter, strict=True)
    columns = find_columns(path, reader.fieldnames or ())
    try:
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if any(not row.get(name) for name in columns.values()):
                raise InputError(f"{where}: a value is missing", "expected " + ", ".join(columns.values()))
            yield where, {key: row[name] for key, name in columns.items()}
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: {error}", "expected a table") from None


def _parquet(path: Path) -> Iterable[tuple[str, dict[str, str]]]:
    try:
        from pyarrow import lib, parquet
    except ImportError:
        raise MachineError(f"{path}: pyarrow is not installed", hint="pip install 'bigmodel[parquet]'") from None
    try:
        whole = parquet.read_table(path)
    except (lib.ArrowException, OSError) as error:
        raise InputError(f"{path}: {str(error).splitlines()[0]}", "expected a Parquet file") from None
    columns = find_columns(path, whole.column_names)
    values = {key: whole.column(name).to_pylist() for key, name in columns.items()}
    for number in range(whole.num_rows):
        row = {key: column[number] for key, column in values.items()}
        if any(value is None for value in row.values()):
            raise InputError(f"{path}: row {number + 1}: a value is missing", "expected " + ", ".join(columns.values()))
        yield f"{path}: row {number + 1}", {key: str(value) for key, value in row.items()}


def column_of(name: str, ids: Sequence[str], values: Mapping[str, Sequence[str]]) -> Column:
    """An attribute as a coded column: `values` holds the values of each id that has any."""
    names = tuple(sorted({v for given in values.values() for v in given}, key=natural))
    code: Callable[[Any], int] = {v: i for i, v in enumerate(names)}.__getitem__
    return Column(name, names, tuple(tuple(sorted({code(v) for v in values.get(i, ())})) for i in ids))
