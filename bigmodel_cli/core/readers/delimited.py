"""How a file of separated values is written: its separator, whether quotation marks quote, whether it has a header.

Comma- and semicolon-separated files quote (RFC 4180). In tab-separated ones a quotation mark is text, unless the whole
file is evidently written by a program that quotes.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.readers.columns import USUAL, by_number, plain_name
from bigmodel_cli.core.readers.text_files import lines_before, open_text

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
PEEK = 20  # rows from which the separator is chosen
QUOTE = '"'


@dataclass(frozen=True)
class Dialect:
    """How a table is written."""

    separator: str
    quoted: bool
    """Whether quotation marks around a cell quote it; else they are text."""
    header: bool
    first_line: int
    """The line of the header, or of the first row; those before it are blank."""
    notes: tuple[str, ...] = ()
    blanks: bool = False
    """Whether blanks after a separator are no part of the cell, as before a quoted one."""

    @property
    def shown(self) -> str:
        return "a tab" if self.separator == "\t" else self.separator

    def read(self, path: Path, encoding: str) -> Iterator[tuple[int, list[str]]]:
        """The line and the cells of each row, without the header.

        Raises:
            InputError: a row cannot be read; the message names its line.
        """
        rows = _records(path, encoding, self.separator, self.quoted, self.first_line, self.blanks)
        return itertools.islice(rows, 1, None) if self.header else rows


def _records(
    path: Path, encoding: str, separator: str, quoted: bool, first_line: int = 1, blanks: bool = False
) -> Iterator[tuple[int, list[str]]]:
    """The first line and the cells of each record from `first_line` on; a blank line has no cells."""
    with open_text(path, encoding) as file:
        for _ in range(first_line - 1):
            file.readline()
        if quoted:
            reader = csv.reader(file, delimiter=separator, strict=True, skipinitialspace=blanks)
        else:
            reader = csv.reader(file, delimiter=separator, quoting=csv.QUOTE_NONE, strict=True)
        line = first_line
        try:
            for cells in reader:
                yield line, cells
                line = first_line + reader.line_num
        except csv.Error as error:
            hint = 'a quotation mark in a quoted text is written twice: ""' if quoted else None
            expected = f"expected {SEPARATORS[separator]} between cells"
            raise InputError(f"{path}:{line}: {_explain(error)}", expected, hint) from None
        except UnicodeError as error:
            what = f"{path}:{first_line + reader.line_num + lines_before(error)}: not {encoding}: {error}"
            raise InputError(what, "expected text", "--set data.encoding=...") from None


def _explain(error: csv.Error) -> str:
    text = str(error)
    if "unexpected end of data" in text:
        return "a quotation mark opens a text and none closes it"
    if "expected after" in text:
        return "text after a closing quotation mark"
    return text


def find_dialect(
    path: Path, encoding: str, usual: str, roles: Sequence[str], given: Mapping[str, str], peek: bool = False
) -> tuple[Dialect, list[str] | None]:
    """How the file at `path` is written, and its first row (the header, if it has one); None if it is empty.

    `usual` is the separator that the suffix implies. With `peek`, only the beginning of the file is read.

    Raises:
        InputError: the file cannot be read.
    """
    first_line, declared = _skip_blank(path, encoding)
    if first_line is None:
        return Dialect(usual, True, True, 1), None
    order = [declared] if declared else [usual, *(s for s in SEPARATORS if s != usual)]
    readings = {s: _peek(path, encoding, s, first_line) for s in order}
    best = max(order, key=lambda s: (_fits(readings[s], roles, given), -order.index(s)))
    first = readings[best][0] if readings[best] else []
    numbered = by_number(given) and not _is_header(first, given)
    notes = [f"read as separated by {SEPARATORS[best]}"] if best != usual else []
    notes += ["no header: the first line is data, since --columns gives numbers"] if numbered else []
    quoted = best != "\t"
    if not quoted and not peek and _has_quotes(path, encoding):
        quoted = _is_quoted(path, encoding, best, first_line)
        notes += [] if quoted else ["quotation marks are read as text"]
    blanks = quoted and _is_spaced(path, encoding, best, first_line, readings[best])
    if blanks:
        notes.append("blanks before quoted cells are left out")
        first = _peek(path, encoding, best, first_line, blanks)[0]
    dialect = Dialect(best, quoted, not numbered, first_line, tuple(notes), blanks)
    if not quoted and best == "\t":
        first = next(iter(_records(path, encoding, best, False, first_line)))[1]
    return dialect, first


def _skip_blank(path: Path, encoding: str) -> tuple[int | None, str | None]:
    """The number of the first line with something in it, and the separator that Excel's line ``sep=;`` declares."""
    declared = None
    with open_text(path, encoding) as file:
        try:
            for number, line in enumerate(file, 1):
                text = line.strip("\r\n")
                if text[:4].lower() == "sep=" and len(text) == 5 and text[4] in SEPARATORS:
                    declared = text[4]
                elif text.strip(" ,;"):
                    return number, declared
        except UnicodeError as error:
            raise InputError(f"{path}: not {encoding}: {error}", "expected text", "--set data.encoding=...") from None
    return None, declared


def _is_spaced(path: Path, encoding: str, separator: str, first_line: int, rows: list[list[str]]) -> bool:
    """Whether blanks stand between separators and quoted cells, as in ``"a", "b"``: all of the first rows say so."""
    if not any(cell[:1] == " " and cell.lstrip()[:1] == QUOTE for row in rows for cell in row):
        return False
    without = _peek(path, encoding, separator, first_line, True)
    return len(without) >= len(rows) and all(len(row) == len(without[0]) for row in without if row)


def _peek(path: Path, encoding: str, separator: str, first_line: int, blanks: bool = False) -> list[list[str]]:
    """The first rows as `separator` gives them, as far as they can be read."""
    rows: list[list[str]] = []
    try:
        for _, cells in itertools.islice(_records(path, encoding, separator, True, first_line, blanks), PEEK):
            rows.append(cells)
    except InputError:
        pass  # reported when the file is read in earnest
    return [row for i, row in enumerate(rows) if row or not i]


def _fits(rows: list[list[str]], roles: Sequence[str], given: Mapping[str, str]) -> tuple[int, int]:
    """How well a separator fits: how many columns are ones that are looked for, then how many there are."""
    if not rows or len(rows[0]) < 2:
        return 0, 0
    header = {plain_name(name) for name in rows[0]}
    wanted = [{plain_name(part) for part in given[role].split("+")} if role in given else set(USUAL.get(role, ()))
              for role in (roles or USUAL)]  # fmt: skip
    named = sum(bool(header & names) for names in wanted)
    steady = sum(len(row) == len(rows[0]) for row in rows[1:]) * 2 >= len(rows) - 1
    return named, len(rows[0]) if steady else 1


def _is_header(first: Sequence[str], given: Mapping[str, str]) -> bool:
    """Whether every numbered cell of the first row is a usual name of what its column is said to be."""
    for role, value in given.items():
        for part in value.split("+"):
            at = int(part) - 1
            if not 0 <= at < len(first) or plain_name(first[at]) not in (*USUAL.get(role, ()), role, "title"):
                return False
    return True


def _has_quotes(path: Path, encoding: str) -> bool:
    with open_text(path, encoding) as file:
        try:
            return any(QUOTE in line for line in file)
        except UnicodeError:
            return False  # reported when the rows are read


def _is_quoted(path: Path, encoding: str, separator: str, first_line: int) -> bool:
    """Whether a program that quotes cells wrote this file, as Python's csv, pandas and spreadsheets do.

    Such a file has the same number of cells in every record, no lone quotation mark, and quotes each cell that needs it
    (it holds a separator, a line break, or a quotation mark, written twice) and either no other or all that are text.
    """
    needed = spare = False
    width: int | None = None
    try:
        with open_text(path, encoding) as file:
            for _ in range(first_line - 1):
                file.readline()
            lines: list[str] = []
            reader = csv.reader(_recorded(file, lines), delimiter=separator, strict=True)
            for cells in reader:
                width = width or len(cells)
                if cells and len(cells) != width:
                    return False
                literal = [line.rstrip("\r\n").split(separator) for line in lines]
                doubled = any(QUOTE * 2 in line for line in lines)
                lines.clear()
                if len(literal) > 1 and width > 1 and not doubled and all(len(row) == width for row in literal):
                    return False  # each of these lines is a row, and the quotation marks in them are not a pair
                if len(literal) > 1 or len(literal[0]) != len(cells):
                    needed = True
                    continue
                for cell in literal[0]:
                    if QUOTE in cell and not cell.startswith(QUOTE):
                        return False
                    needed = needed or QUOTE * 2 in cell[1:-1]
                    spare = spare or (cell.startswith(QUOTE) and QUOTE * 2 not in cell[1:-1])
    except (csv.Error, UnicodeError):
        return False
    return needed or (spare and _all_quoted(path, encoding, separator, first_line))


def _recorded(file: Iterator[str], lines: list[str]) -> Iterator[str]:
    for line in file:
        lines.append(line)
        yield line


def _all_quoted(path: Path, encoding: str, separator: str, first_line: int) -> bool:
    """Whether the header's cells are all quoted, as by a program that quotes all text."""
    with open_text(path, encoding) as file:
        for _ in range(first_line - 1):
            file.readline()
        cells = file.readline().rstrip("\r\n").split(separator)
    return all(len(cell) > 1 and cell[0] == cell[-1] == QUOTE for cell in cells)
