"""The texts in a file that is given to ``predict`` or ``explain``, read as in training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.readers.fasttext import is_fasttext, split_labels
from bigmodel_cli.core.readers.tables import Table, as_text, open_table, table_suffix
from bigmodel_cli.core.readers.text_files import AUTO, find_encoding, numbered_lines, read_blocks, read_text

MOST_CHARACTERS = 1_000_000
"""Of a text, far beyond what a model reads of it. A tokenizer takes some 200 bytes of memory and 2 us for each."""


@dataclass(frozen=True)
class Reading:
    """How files are read: the columns of tables by role, as in ``data.columns``, and the encoding of all of them.

    With `whole`, a file of text is one sample, as in class folders of texts; else each of its lines is one. The columns
    `of_training` are those of the training data: another table, without them, is read by the usual names.
    """

    columns: Mapping[str, str] | None = None
    encoding: str = AUTO
    whole: bool = False
    of_training: bool = False

    def of(self, *roles: str) -> dict[str, str]:
        """The columns of `roles`, those that are named."""
        return {k: v for k, v in (self.columns or {}).items() if k in roles}

    def options(self) -> dict[str, object]:
        """The options of a data set that say so, those that are not as found."""
        known = {"columns": self.columns, "encoding": None if self.encoding == AUTO else self.encoding}
        return {name: value for name, value in known.items() if value}


AS_FOUND = Reading()
"""Columns by their usual names, and the encoding that the content tells."""


def read_texts(path: Path, role: str, how: Reading = AS_FOUND) -> Iterator[tuple[str, str]]:
    """The location and the text of each row of a table, in the column for `role`, or else of each line.

    Labels in a file of fastText's format are left out. A file that is read `whole` is one text.

    `how` is as for the training data; the table need not have the columns of other roles.

    Raises:
        InputError: the file cannot be read, has no such column, or a text is too long. Those before it are yielded.
    """
    if table_suffix(path):
        table = open_for(path, (role,), how)
        for at, (text,) in table.rows(role):
            yield require_short(table.located(at), as_text(text, table.located(at), role))
    elif how.whole:
        yield require_short(str(path), read_text(path, how.encoding, most=4 * MOST_CHARACTERS))
    else:
        labelled = role == "text" and is_fasttext(path)
        for number, line in numbered_lines(path, how.encoding):
            yield require_short(f"{path}:{number}", split_labels(line)[1] if labelled else line)


class TextTooLongError(InputError):
    """A text of more than `MOST_CHARACTERS`."""


def require_short(name: str, text: str) -> tuple[str, str]:
    """`name` and `text`, if it is no longer than a text may be.

    Raises:
        TextTooLongError: it is.
    """
    if len(text) > MOST_CHARACTERS:
        what = f"{name}: {len(text):,} characters"
        raise TextTooLongError(what, f"expected at most {MOST_CHARACTERS:,} in a text")
    return name, text


def open_for(path: Path, roles: Sequence[str], how: Reading, notes: list[str] | None = None) -> Table:
    """The table at `path` with the columns of `roles` alone; what a person should know is added to `notes`.

    Raises:
        InputError: it is no table, or has no column for a role; or columns are named, and none for a role.
    """
    given, found = how.of(*roles), list[str]()
    if how.columns and not given and not how.of_training:
        raise InputError(f"--columns {next(iter(how.columns))}=...", f"expected {' and '.join(roles)} here")
    try:
        table = open_table(path, roles, given, how.encoding, found)
    except InputError as error:
        if not (given and how.of_training):
            raise
        found.clear()
        try:
            table = open_table(path, roles, None, how.encoding, found)
        except InputError:
            raise error from None  # what it lacks of the training data says more
        names = ", ".join(f"{role}={table.chosen.named(role)}" for role in roles)
        found.append(f"{path.name}: without the columns of the training data; read by the usual names: {names}")
    if notes is not None:
        notes += [note for note in found if "columns not used" not in note]  # a label is none that predict uses
    return table


def guesses(path: Path, role: str, how: Reading = AS_FOUND) -> list[str]:
    """What :func:`read_texts` guesses of the file at `path`, to be said: its encoding, and how a table is written.

    Raises:
        InputError: as :func:`read_texts`.
    """
    if not table_suffix(path):
        return list(filter(None, [find_encoding(path, read_blocks(path))[1]])) if how.encoding == AUTO else []
    notes: list[str] = []
    open_for(path, (role,), how, notes)
    return notes
