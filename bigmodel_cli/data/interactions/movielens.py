"""MovieLens 100K and 1M (Harper and Konstan 2015): ratings with attributes of users and films, in GroupLens' files."""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.files.regular_files import open_regular
from bigmodel_cli.core.interactions import Column
from bigmodel_cli.core.registry import data
from bigmodel_cli.core.types import DataBundle
from bigmodel_cli.data.download import download
from bigmodel_cli.data.interactions.bundle import RANKING, RATINGS, Context, build_bundle
from bigmodel_cli.data.interactions.splits import Parts, Split, choose_split, published_fold
from bigmodel_cli.data.interactions.table import Table, Ties, build_table, column_of

ADDRESS = "https://files.grouplens.org/datasets/movielens/"
SHA256 = {
    "ml-100k": "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
    "ml-1m": "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
}
MOST = 64 << 20  # bytes of one file; the ratings of MovieLens 1M take 24 MB
LICENCE = "GroupLens' licence: for research, do not redistribute; see the README beside the data"
Fold = Annotated[int, Field(ge=1, le=5, description="which published split, u1 to u5; needs its two files")]
SplitSeed = Annotated[int, Field(ge=0, lt=2**32, description="of the split random")]
Rows = list[tuple[str, ...]]


@dataclass(frozen=True)
class Files:
    """The files of a data set: in a folder, or in GroupLens' zip."""

    folder: Path
    archive: str | None = None

    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            InputError: it is missing, damaged or too large.
        """
        where = self.folder / name
        try:
            if self.archive is None:
                with open_regular(where) as file:
                    raw = file.read(MOST + 1)
            else:
                with zipfile.ZipFile(self.folder) as archive, archive.open(f"{self.archive}/{name}") as member:
                    raw = member.read(MOST + 1)
        except (KeyError, FileNotFoundError):
            raise InputError(f"{where}: no such file", "expected GroupLens' files") from None
        except (OSError, EOFError, zipfile.BadZipFile, RuntimeError) as error:
            raise InputError(f"{where}: {error}", "delete it to have it downloaded again") from None
        if len(raw) > MOST:
            raise InputError(f"{where}: more than {MOST >> 20} MB", "expected GroupLens' file")
        return raw

    def rows(self, name: str, separator: str | None, columns: int) -> Rows:
        """The lines of a file, in Latin-1, as `columns` texts each; without a `separator`, split at blanks.

        Raises:
            InputError: a line has fewer columns; the message names it.
        """
        found = []
        for number, line in enumerate(self.read(name).decode("latin-1").splitlines(), 1):
            row = tuple(line.split(separator))
            if not line:  # u.genre ends with one
                continue
            if len(row) < columns:
                raise InputError(f"{self.folder / name}:{number}: {len(row)} columns", f"expected {columns}")
            found.append(row)
        return found


def locate(root: Path, name: str, archive: str, first: str) -> Files:
    """The files in ``root/<name>``, ``root/<archive>`` or its zip, which is downloaded if none of them is there."""
    for folder in (root / name, root / archive):
        if (folder / first).is_file():
            return Files(folder)
    packed = root / name / f"{archive}.zip"
    if not packed.is_file():
        download(
            [f"{ADDRESS}{archive}.zip"], packed, sha256=SHA256[archive], what=name, most=MOST,
            hint=f"--data-dir DIR with {name}/{first} in it",
        )  # fmt: skip
    return Files(packed, archive)


@data.register(
    "movielens-100k", kind="interactions", folders=("movielens-100k", "ml-100k"), files=("u.data|ml-100k.zip",)
)
def movielens_100k(
    root: Path,
    task: str = RANKING,
    *,
    split: Split = "auto",
    fold: Fold = 1,
    ties: Ties = "hashed",
    seed: SplitSeed = 0,
    context: Context = 200,
) -> DataBundle:
    """100,000 ratings of 1,682 films by 943 users, 1997-98 (Harper and Konstan 2015); for research only.

    Args:
        split: auto: the published fold for ratings, leave-last-out for ranking.
        ties: the order of interactions at the same second: a fixed hash, by item id, or as in the file.
    """
    files = locate(root, "movielens-100k", "ml-100k", "u.data")
    people, films = files.rows("u.user", "|", 5), files.rows("u.item", "|", 24)
    genres = [row[0] for row in files.rows("u.genre", "|", 2) if row[0]]
    table = _table(files, "u.data", None, ties, people, films)
    ranking = task != RATINGS
    if split == "fold" or (split == "auto" and not ranking):
        parts = _fold(files, table, fold, ranking)
    else:
        parts = choose_split(table, split, ranking, ties, seed)
    of_genre = {row[0]: [genres[k] for k in range(len(genres)) if row[5 + k] == "1"] for row in films}
    return build_bundle(
        table, parts, task, context, _fingerprint(files, "u.data", table, parts),
        titles=_titles(table, films),
        user_columns=_of_people(table, people, age=lambda row: _decade(row[1]), gender=lambda row: row[2],
                                occupation=lambda row: row[3], region=lambda row: row[4][:1]),
        item_columns=(column_of("genre", table.item_ids, of_genre), _years(table, films, lambda row: row[2][-4:])),
        notes=[LICENCE],
    )  # fmt: skip


@data.register("movielens-1m", kind="interactions", folders=("movielens-1m", "ml-1m"), files=("ratings.dat|ml-1m.zip",))
def movielens_1m(
    root: Path,
    task: str = RANKING,
    *,
    split: Split = "auto",
    ties: Ties = "hashed",
    seed: SplitSeed = 0,
    context: Context = 200,
) -> DataBundle:
    """1,000,209 ratings of 3,883 films by 6,040 users, 2000 (Harper and Konstan 2015); for research only.

    Args:
        split: auto: random by user for ratings, leave-last-out for ranking.
        ties: the order of interactions at the same second: a fixed hash, by item id, or as in the file.
    """
    files = locate(root, "movielens-1m", "ml-1m", "ratings.dat")
    people, films = files.rows("users.dat", "::", 5), files.rows("movies.dat", "::", 3)
    table = _table(files, "ratings.dat", "::", ties, people, films)
    parts = choose_split(table, split, task != RATINGS, ties, seed)
    return build_bundle(
        table, parts, task, context, _fingerprint(files, "ratings.dat", table, parts),
        titles=_titles(table, films),
        user_columns=_of_people(table, people, age=lambda row: row[2], gender=lambda row: row[1],
                                occupation=lambda row: row[3], region=lambda row: row[4][:1]),
        item_columns=(column_of("genre", table.item_ids, {row[0]: row[2].split("|") for row in films}),
                      _years(table, films, lambda row: row[1].rstrip(")")[-4:])),
        notes=[LICENCE],
    )  # fmt: skip


def _table(files: Files, name: str, separator: str | None, ties: Ties, people: Rows, films: Rows) -> Table:
    rows = files.rows(name, separator, 4)
    try:
        ratings, times = [float(row[2]) for row in rows], [int(row[3]) for row in rows]
    except ValueError as error:
        raise InputError(f"{files.folder / name}: {error}", "expected numbers") from None
    users, items = [row[0] for row in rows], [row[1] for row in rows]
    return build_table(users, items, ratings, times, ties, (row[0] for row in people), (row[0] for row in films))


def _fold(files: Files, table: Table, fold: int, val: bool) -> Parts:
    """The split of ``u<fold>.base`` and ``u<fold>.test``.

    Raises:
        InputError: a file is missing, or the two do not make up the table.
    """
    place = {(table.user_ids[u], table.item_ids[i]): n for n, (u, i) in enumerate(_pairs(table))}
    base, test = (
        {place.get((row[0], row[1])) for row in files.rows(f"u{fold}.{part}", None, 4)} for part in ("base", "test")
    )  # fmt: skip
    if None in base | test or base & test or len(base) + len(test) != len(table):
        raise InputError(f"{files.folder}: u{fold}.base and u{fold}.test", "expected the ratings of u.data, once each")
    in_test = torch.zeros(len(table), dtype=torch.bool)
    in_test[torch.tensor(sorted(n for n in test if n is not None))] = True
    return published_fold(table, in_test, f"u{fold}", val)


def _pairs(table: Table) -> list[tuple[int, int]]:
    return list(zip(table.user.tolist(), table.item.tolist(), strict=True))


def _fingerprint(files: Files, name: str, table: Table, parts: Parts) -> str:
    total = hashlib.sha256(files.read(name))
    for tensor in (table.user, table.item, parts.part):
        total.update(tensor.numpy().tobytes())
    return total.hexdigest()


def _titles(table: Table, films: Rows) -> list[str]:
    title = {row[0]: row[1] for row in films}
    return [title.get(name, name) for name in table.item_ids]


def _of_people(table: Table, people: Rows, **columns: Callable[[tuple[str, ...]], str]) -> tuple[Column, ...]:
    return tuple(
        column_of(name, table.user_ids, {row[0]: [value] for row in people if (value := value_of(row))})
        for name, value_of in columns.items()
    )


def _decade(age: str) -> str:
    return f"{age[:-1] or '0'}0s" if age.isdigit() else ""


def _years(table: Table, films: Rows, year_of: Callable[[tuple[str, ...]], str]) -> Column:
    """The year of each film: by itself from 1990 on, by its decade before."""

    def period(row: tuple[str, ...]) -> list[str]:
        year = year_of(row)
        if not re.fullmatch(r"(19|20)\d\d", year):
            return []
        return [year if int(year) >= 1990 else f"{year[:3]}0s"]

    return column_of("year", table.item_ids, {row[0]: period(row) for row in films})
