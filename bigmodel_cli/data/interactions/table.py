"""Tables of interactions: read, checked, coded, in a fixed order. Shapes: N interactions, U users, I items."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.interactions import Column
from bigmodel_cli.core.readers.tables import as_text, open_table
from bigmodel_cli.core.registry import natural

Ties = Literal["hashed", "item", "file"]
ROLES = ("user", "item", "rating", "time")
DATE_DIGITS = 8  # of 20240131


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


def read_table(
    path: Path, encoding: str, ties: Ties, notes: list[str], columns: Mapping[str, str] | None = None
) -> Table:
    """A table of interactions: a user, an item, and perhaps a rating (or click) and a time, by name or `columns`.

    Without a rating every interaction counts 1; without a time the order of the file stands for it.

    Raises:
        InputError: a column is missing or a value is not a number; the message names the line.
    """
    opened = open_table(path, ROLES, columns, encoding, notes)
    rows = ((opened.located(line), values) for line, values in opened.rows(*ROLES))
    users, items, ratings, times = list[str](), list[str](), list[float](), list[int]()
    for where, (user, item, rating, time) in rows:
        users.append(_id(where, "user", user))
        items.append(_id(where, "item", item))
        ratings.append(1.0 if rating is None else _number(where, "rating", rating))
        if time is not None:
            times.append(_seconds(where, time))
    if not users:
        raise InputError(f"{path}: it is empty", "expected rows with user and item")
    if times and len(times) != len(users):
        raise InputError(
            f"{path}: {len(times):,} of {len(users):,} rows have a time", "expected one in each or in none"
        )
    if not times:
        notes.append("no time column: the order of the file stands for time")
    return build_table(users, items, ratings, times or list(range(len(users))), ties)


def _id(where: str, column: str, value: Any) -> str:
    """A user's or an item's id as text; blanks around it are removed."""
    text = as_text(value, where, column).strip()
    if not text:
        raise InputError(f"{where}: no {column}", "expected an id in every row")
    return text


def _number(where: str, column: str, given: Any) -> float:
    try:
        value = float(given)
    except (TypeError, ValueError):
        value = float("nan")
    if not abs(value) < 1e15:
        expected = "expected a number of seconds, or a date as 2024-01-31" if column == "time" else "expected a number"
        raise InputError(f"{where}: {column} is {str(given)[:40]!r}", expected)
    return value


def _seconds(where: str, given: Any) -> int:
    """Unix seconds of a number or of a date as ISO 8601 writes it; a date without a zone is UTC."""
    if isinstance(given, str) and given.strip().isdigit() and len(given.strip()) != DATE_DIGITS:
        return int(
            _number(where, "time", given)
        )  # Python reads some milliseconds as dates: 1512011512345 as 1512-01-15 23:45
    try:
        when = given if isinstance(given, datetime) else datetime.fromisoformat(given)
    except (TypeError, ValueError):
        return int(_number(where, "time", given))
    return int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp())


def column_of(name: str, ids: Sequence[str], values: Mapping[str, Sequence[str]]) -> Column:
    """An attribute as a coded column: `values` holds the values of each id that has any."""
    names = tuple(sorted({v for given in values.values() for v in given}, key=natural))
    code: Callable[[Any], int] = {v: i for i, v in enumerate(names)}.__getitem__
    return Column(name, names, tuple(tuple(sorted({code(v) for v in values.get(i, ())})) for i in ids))
