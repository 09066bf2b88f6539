"""One table of texts, or a folder with one for each split, as splits of rows.

A row is read when it is needed and not held: a first pass finds the splits and the labels, later ones give the texts.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bigmodel_cli.core.class_names import LONGEST_ABSENT, AbsentTexts
from bigmodel_cli.core.counted import counted
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.one_hot import has_several, one_label
from bigmodel_cli.core.readers.label_cells import LabelCells
from bigmodel_cli.core.readers.tables import SUFFIXES, Table, as_text, open_table, tables_in, without_shard
from bigmodel_cli.core.readers.text_files import AUTO
from bigmodel_cli.core.splits import check_one_folder_each, split_of, splits_among
from bigmodel_cli.data.text.labelled import untrained_note

TRAIN = "train"
HELD = 1024  # texts that are digested at once


def split_files(path: Path, notes: list[str]) -> list[tuple[str | None, Path]]:
    """Each table with its split; None for one table that may have a column ``split``.

    Several files may hold one split, as ``train-00000-of-00002.parquet`` and its sisters.

    Raises:
        InputError: it is a folder without tables, or with several that are no splits.
    """
    if not path.is_dir():
        return [(None, path)]
    tables = tables_in(path)
    by_name: dict[str, list[Path]] = {}
    for table in tables:
        by_name.setdefault(without_shard(table), []).append(table)
    named = splits_among(by_name)
    if not named and len(by_name) == 1:
        return [(None, table) for table in tables]
    if not named:
        there = ", ".join(f.name for f in tables[:5]) or "none"
        raise InputError(f"{path}: tables {there}", f"expected train{SUFFIXES[0]} and others, or --data TABLE")
    if both := check_one_folder_each(path, named):
        names = [by_name[name][0].name for name in both]
        raise InputError(f"{path}: both {names[0]} and {names[1]}", "expected one a split")
    used: list[tuple[str | None, Path]] = [(split, table) for name, split in named.items() for table in by_name[name]]
    taken = {table for _, table in used} | {table.parent for _, table in used}
    others = sorted(f.name for f in path.iterdir() if f not in taken and not f.name.startswith("."))
    notes += [f"{path.name}/: not used: {', '.join(others[:5])}{', ...' if len(others) > 5 else ''}"] if others else []
    return used


@dataclass
class SplitRows:
    """The rows of one split: where they are, and their labels as numbers."""

    parts: list[tuple[Table, array[int]]] = field(default_factory=list)
    """Each table with the lines of this split's rows in it."""
    labels: array[int] = field(default_factory=lambda: array("i"))

    def values(self, *roles: str) -> Iterator[tuple[Table, int, list[Any]]]:
        """The table, the line and the value of each of `roles` of every row."""
        for table, lines in self.parts:
            wanted = iter(lines)
            line = next(wanted, None)
            for at, values in table.rows(*roles):
                if at == line:
                    yield table, at, values
                    line = next(wanted, None)
            if line is not None:
                raise InputError(f"{table.located(line)}: the row is gone", "it was there when the run began")

    def texts(self) -> Iterator[tuple[str, str | None]]:
        """Each text and its group; None without a group column."""
        for table, line, (text, group) in self.values("text", "group"):
            plain = text if type(text) is str else as_text(text, table.located(line), "text")
            yield plain, None if group is None else f"group {group}"


def find_splits(
    path: Path,
    roles: Sequence[str],
    given: Mapping[str, str] | None,
    group_by: str | None,
    encoding: str,
    notes: list[str],
    accept: Callable[[Table, int, str, list[Any]], str | None],
    apart: Sequence[str] = (),
) -> dict[str, SplitRows]:
    """The splits of the table or folder of tables at `path`, after a pass over all rows.

    The values of the roles in `apart` are lists of cells.

    `accept` sees the table, the line, the split and the values of `roles` of each row. It returns why the row is not
    used, or None; what is not used is counted by reason in `notes`.

    Raises:
        InputError: a row cannot be read, or names an unknown split.
    """
    given = {**(given or {}), **({"group": group_by} if group_by else {})}
    found: dict[str, SplitRows] = {}
    unused: dict[str, int] = {}
    unnamed = 0
    for split, file in split_files(path, notes):
        try:
            table = open_table(file, (*roles, "split", "group"), given, encoding, notes)
        except InputError as error:
            if split == "test" and "label" in roles and "no column label" in error.what:
                notes.append(f"{file.name}: not used: it has no labels")
                continue
            raise
        table.apart = frozenset(apart)
        lines: dict[str, array[int]] = {}
        has_column = "split" in table.chosen.places
        for line, (*values, named) in table.rows(*roles, "split"):
            here = split or (_row_split(table, line, named) if has_column else TRAIN)
            unnamed += split is None and has_column and (named is None or not str(named).strip())
            reason = accept(table, line, here, values)
            if reason is None:
                lines.setdefault(here, array("q")).append(line)
            else:
                unused[reason] = unused.get(reason, 0) + 1
        for name, rows in lines.items():
            found.setdefault(name, SplitRows()).parts.append((table, rows))
    notes += [f"{counted(n, 'row')} not used: {reason}" for reason, n in unused.items()]
    notes += [f"{unnamed:,} rows name no split: train"] if unnamed and len(found) > 1 else []
    if not found:
        raise InputError(f"{path}: it is empty", f"expected rows with {' and '.join(roles)}")
    return found


def label_columns(
    path: Path, roles: Sequence[str], given: Mapping[str, str] | None, group_by: str | None, encoding: str = AUTO
) -> tuple[str, ...]:
    """The names of the columns of the role ``label``, in the table or the first of the folder of tables at `path`.

    Raises:
        InputError: it is no table, or two of the columns have one name.
    """
    given = {**(given or {}), **({"group": group_by} if group_by else {})}
    file = split_files(path, [])[0][1]
    chosen = open_table(file, (*roles, "split", "group"), given, encoding, []).chosen
    names = tuple(chosen.names[i].strip() or f"column {i + 1}" for i in chosen.places["label"])
    if len(set(names)) < len(names):
        raise InputError(f"{file}: columns {', '.join(names)} for label", "expected each once")
    return names


def _row_split(table: Table, line: int, named: Any) -> str:
    text = "" if named is None else as_text(named, table.located(line), "split").strip()
    split = split_of(text) if text else TRAIN
    if split is None:
        raise InputError(f"{table.located(line)}: split {text!r}", "expected train, val or test")
    return split


class ContentDigest:
    """Digests the texts of the first pass, as :func:`digest_of` would, if they are of one split."""

    def __init__(self) -> None:
        self._total, self._splits = hashlib.sha256(b"[(["), set[str]()
        self._held, self._digested = list[str](), False

    def add(self, split: str, text: str) -> None:
        if split not in self._splits:
            self._splits.add(split)
        if len(self._splits) == 1:
            self._held.append(text)
            if len(self._held) == HELD:
                self._digest()

    def _digest(self) -> None:
        if self._held:
            text = (", " if self._digested else "") + ", ".join(map(repr, self._held))
            self._total.update(text.encode("utf-8", "surrogatepass"))
            self._held, self._digested = [], True

    def finish(self, splits: Mapping[str, SplitRows]) -> str | None:
        """The digest; None if there is more than one split."""
        if len(self._splits) != 1:
            return None
        self._digest()
        self._total.update(f"], {list(splits[next(iter(self._splits))].labels)!r})]".encode())
        return self._total.hexdigest()


def labelled_splits(
    path: Path, given: Mapping[str, str] | None, group_by: str | None, encoding: str, notes: list[str]
) -> tuple[dict[str, SplitRows], list[str], str | None]:
    """The splits of labelled texts, the classes, sorted by name, and the digest of it all if it is known already.

    Raises:
        InputError: a label is empty, or see :func:`find_splits`.
    """
    cells = LabelCells("label")
    ids: dict[str, int] = {}
    labels: dict[str, array[int]] = {}

    def accept(table: Table, line: int, split: str, values: list[Any]) -> str | None:
        text, label = values
        label = one_label(table, label, table.located(line)) if several else label
        name = seen.get(label) if type(label) is str else None
        if name is None:
            name = cells.read(label, lambda: table.located(line))
        simple = type(text) is str and text.isascii() and "\0" not in text
        plain = text if simple else as_text(text, table.located(line), "text")
        if not plain or plain.isspace():
            return "an empty text"
        digest.add(split, plain)
        if len(plain) <= LONGEST_ABSENT:
            absent.add(plain)
        labels.setdefault(split, array("i")).append(ids.setdefault(name, len(ids)))
        return None

    seen = cells.seen
    digest, absent, several = ContentDigest(), AbsentTexts(), has_several(given)
    apart = ("label",) if several else ()
    splits = find_splits(path, ("text", "label"), given, group_by, encoding, notes, accept, apart)
    classes = sorted(ids)
    place = {ids[name]: i for i, name in enumerate(classes)}
    for split, rows in splits.items():
        rows.labels = array("i", [place[i] for i in labels[split]])
    notes += [*cells.notes(classes), *untrained_note(splits, classes), *absent.notes()]
    return splits, classes, digest.finish(splits)
