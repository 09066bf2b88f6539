"""The user's own interactions: a table, with attributes of users and items in tables beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.interactions import Column
from bigmodel_cli.core.readers.columns import Columns
from bigmodel_cli.core.readers.tables import as_text, open_table
from bigmodel_cli.core.readers.text_files import AUTO
from bigmodel_cli.core.registry import data
from bigmodel_cli.core.types import DataBundle, Spec
from bigmodel_cli.data.interactions.bundle import RANKING, RATINGS, Context, build_bundle, in_ids_of
from bigmodel_cli.data.interactions.splits import Split, choose_split
from bigmodel_cli.data.interactions.table import ROLES, Ties, column_of, read_table
from bigmodel_cli.data.user_path import UserPath

Encoding = Annotated[str, Field(description="of the files: auto, utf-8, latin-1, utf-16, ...")]
SplitSeed = Annotated[int, Field(ge=0, lt=2**32, description="of the split random")]
BUCKETS = 10  # of a numeric attribute with more values than this
MANY = 1000  # values of an attribute: more of them identify rather than describe
TITLES = ("title", "name")


def _reads(given: UserPath) -> float:
    """A table with a user and an item, by any of their names. A Parquet file's columns are not looked at."""
    if given.is_dir or given.is_address:
        return 0
    return 4 * given.has_columns(ROLES)


@data.register(kind="interactions", reads=_reads, next="train two-tower")
def interaction_file(
    root: Path,
    task: str = RANKING,
    like: Spec | None = None,
    *,
    path: str,
    columns: Columns | None = None,
    users: str | None = None,
    items: str | None = None,
    encoding: Encoding = AUTO,
    split: Split = "auto",
    ties: Ties = "hashed",
    seed: SplitSeed = 0,
    context: Context = 200,
) -> DataBundle:
    """Your own interactions: a table or .parquet with `user`, `item`, and optionally `rating` and `time`.

    Args:
        users: a table of users' attributes, its first column the user.
        items: a table of items' attributes, its first column the item; `title` names it.
        split: auto: random by user for ratings, leave-last-out for ranking.
        ties: the order of interactions at the same time: a fixed hash, by item id, or as in the file.
    """
    notes = list[str]()
    file = Path(path).expanduser()
    read = read_table(file, encoding, ties, notes, columns)
    table = in_ids_of(like, read)
    more = {"users": table.users - read.users, "items": table.items - read.items}
    absent = " and ".join(f"{count:,} {what}" for what, count in more.items() if count)
    if absent:
        notes.append(f"{absent} of the checkpoint do not occur in {file.name}")
        notes.append(f"a user's history is what {file.name} says: what else they saw may be recommended again")
    parts = choose_split(table, split, task != RATINGS, ties, seed)
    about_users, _ = _attributes(users, table.user_ids, encoding, notes)
    about_items, titles = _attributes(items, table.item_ids, encoding, notes)
    total = hashlib.sha256()
    for tensor in (table.user, table.item, table.rating, table.time, parts.part):
        total.update(tensor.numpy().tobytes())
    return build_bundle(
        table, parts, task, context, total.hexdigest(),
        titles=titles, user_columns=about_users, item_columns=about_items, notes=notes,
    )  # fmt: skip


def _attributes(
    path: str | None, ids: Sequence[str], encoding: str, notes: list[str]
) -> tuple[list[Column], tuple[str, ...]]:
    """The columns of a table of attributes, and the titles in it. Several values are separated by ``|``."""
    if path is None:
        return [], ()
    file = Path(path).expanduser()
    opened = open_table(file, (), None, encoding, aside := list[str]())
    notes += [note for note in aside if "columns not used" not in note]
    header = opened.chosen.names
    if len(header) < 2:
        raise InputError(f"{file}: not a table of attributes", "expected an id and further columns")
    body = [["" if cell is None else as_text(cell, opened.located(line), header[i]).strip()
             for i, cell in enumerate(cells)]
            for line, cells in opened.whole_rows()]  # fmt: skip
    known, columns, titles = set(ids), list[Column](), tuple[str, ...]()
    unknown = sum(row[0] not in known for row in body)
    if unknown:
        notes.append(f"{file.name}: {unknown:,} of {len(body):,} rows are about ids without an interaction")
    for place, name in enumerate(header[1:], 1):
        values = {row[0]: row[place] for row in body if row[place]}
        if name.strip().lower() in TITLES:
            titles = tuple(values.get(i, i) for i in ids)
        elif len(set(values.values())) > MANY and not _numeric(values.values()):
            notes.append(f"{file.name}: column {name} has {len(set(values.values())):,} values and is not used")
        else:
            columns.append(column_of(name, ids, _grouped(values)))
    return columns, titles


def _numeric(values: object) -> bool:
    try:
        return bool([float(v) for v in values])  # type: ignore[attr-defined]
    except ValueError:
        return False


def _grouped(values: dict[str, str]) -> dict[str, list[str]]:
    """Values split at ``|``; those of a numeric column with many values become quantile buckets."""
    if len(set(values.values())) <= BUCKETS or not _numeric(values.values()):
        return {key: [v for v in value.split("|") if v] for key, value in values.items()}
    numbers = torch.tensor([float(v) for v in values.values()], dtype=torch.float64)
    edges = numbers.quantile(torch.linspace(0, 1, BUCKETS + 1, dtype=torch.float64)[1:-1]).unique()
    bucket = torch.bucketize(numbers, edges).tolist()
    low = [float("-inf"), *edges.tolist()]
    return {key: [f"above {low[b]:g}"] for key, b in zip(values, bucket, strict=True)}
