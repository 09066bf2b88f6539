"""The texts in a file that is given to ``predict`` or ``explain``, read as in training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bigmodel_cli.core.readers.fasttext import is_fasttext, split_labels
from bigmodel_cli.core.readers.tables import as_text, open_table, table_suffix
from bigmodel_cli.core.readers.text_files import AUTO, find_encoding, read_blocks, read_lines


@dataclass(frozen=True)
class Reading:
    """How files are read: the columns of tables by role, as in ``data.columns``, and the encoding of all of them."""

    columns: Mapping[str, str] | None = None
    encoding: str = AUTO

    def of(self, role: str) -> dict[str, str]:
        """The column of `role`, if one is named."""
        return {k: v for k, v in (self.columns or {}).items() if k == role}

    def options(self) -> dict[str, object]:
        """The options of a data set that say so, those that are not as found."""
        known = {"columns": self.columns, "encoding": None if self.encoding == AUTO else self.encoding}
        return {name: value for name, value in known.items() if value}


AS_FOUND = Reading()
"""Columns by their usual names, and the encoding that the content tells."""


def read_texts(path: Path, role: str, how: Reading = AS_FOUND) -> Iterator[tuple[str, str]]:
    """The location and the text of each row of a table, in the column for `role`, or else of each line.

    Labels in a file of fastText's format are left out.

    `how` is as for the training data; the table need not have the columns of other roles.

    Raises:
        InputError: the file cannot be read, or has no such column.
    """
    if role == "text" and is_fasttext(path):
        for number, line in enumerate(read_lines(path, how.encoding), 1):
            yield f"{path}:{number}", split_labels(line)[1]
        return
    if not table_suffix(path):
        for number, line in enumerate(read_lines(path, how.encoding), 1):
            yield f"{path}:{number}", line
        return
    table = open_table(path, (role,), how.of(role), how.encoding)
    for at, (text,) in table.rows(role):
        yield table.located(at), as_text(text, table.located(at), role)


def guesses(path: Path, role: str, how: Reading = AS_FOUND) -> list[str]:
    """What :func:`read_texts` guesses of the file at `path`, to be said: its encoding, and how a table is written.

    Raises:
        InputError: as :func:`read_texts`.
    """
    if not table_suffix(path):
        return list(filter(None, [find_encoding(path, read_blocks(path))[1]])) if how.encoding == AUTO else []
    notes: list[str] = []
    open_table(path, (role,), how.of(role), how.encoding, notes)
    return [note for note in notes if "columns not used" not in note]  # a label is none that predict uses
