"""JSON lines from anyone: one object a line, held to JSON's own rules and to the fields that are needed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bigmodel_cli.core.errors import InputError, nearest
from bigmodel_cli.core.text_files import AUTO, read_blocks, read_lines

MAX_LINE_CHARS = 8 << 20  # characters of a line
Check = Callable[[Any], str | None]
"""What is wrong with a value, or None."""


def text_problem(value: Any) -> str | None:
    """None where `value` is text that UTF-8 can hold; a number is what it prints as, for labels."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            return f"character {error.start} is half a surrogate pair"
        return None
    return None if type(value) is int else f"is {_kind(value)}, expected text"


def read_records(
    path: Path, fields: Mapping[str, Check], encoding: str = AUTO, notes: list[str] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each line that is not empty: where it stands (``file:line``), and its object with `fields`.

    JSON is UTF-8 (RFC 8259); "auto" also takes what a byte order mark says, and guesses nothing.

    Raises:
        InputError: a line is no such object, or the file has none.
    """
    encoding = resolve_encoding(path, encoding)
    found = False
    for number, line in enumerate(read_lines(path, encoding, notes), 1):
        if line.strip():
            found = True
            yield f"{path}:{number}", parse_record(f"{path}:{number}", line, fields)
    if not found:
        raise InputError(f"{path}: it is empty", f"expected a line with {' and '.join(fields)}")


def resolve_encoding(path: Path, encoding: str) -> str:
    """ "auto" as the encoding that a byte order mark names, else UTF-8.

    Raises:
        InputError: a line is not UTF-8; it is named.
    """
    if encoding != AUTO:
        return encoding
    line, rest = 1, b""
    for i, block in enumerate(read_blocks(path)):
        if i == 0 and block[:2] in (b"\xff\xfe", b"\xfe\xff"):
            return "utf-32" if block[:4] in (b"\xff\xfe\0\0", b"\0\0\xfe\xff") else "utf-16"
        # Whole lines: no character is cut at the end of a block.
        whole, newline, rest_now = (rest + block).rpartition(b"\n")
        line, rest = _utf8(path, whole + newline, line), rest_now
        if len(rest) > 4 * MAX_LINE_CHARS:
            raise InputError(
                f"{path}:{line}: more than {len(rest)} bytes", f"expected at most {MAX_LINE_CHARS} characters"
            )
    _utf8(path, rest, line)
    return "utf-8"


def _utf8(path: Path, part: bytes, line: int) -> int:
    """The number of the line after `part`, which begins with line `line`."""
    try:
        part.decode()
    except UnicodeDecodeError as error:
        at = line + part[: error.start].count(b"\n")
        what = f"{path}:{at}: not UTF-8: a byte is {part[error.start]:#04x}"
        raise InputError(what, "expected JSON in UTF-8", "--set data.encoding=latin-1 where it is that") from None
    return line + part.count(b"\n")


def parse_record(where: str, line: str, fields: Mapping[str, Check]) -> dict[str, Any]:
    """The object in `line`, which stands at `where`, with every one of `fields` as its check wants it.

    Raises:
        InputError: it is too long, not JSON (duplicate keys and NaN are not), or a field is missing or wrong.
    """
    if len(line) > MAX_LINE_CHARS:
        raise InputError(f"{where}: {len(line)} characters", f"expected at most {MAX_LINE_CHARS}")
    try:
        row = json.loads(line, object_pairs_hook=unique_keys, parse_constant=reject_nan)
    except (ValueError, RecursionError) as error:  # a number of too many digits, nesting without end
        raise InputError(f"{where}: not JSON: {error}", "expected one object a line") from None
    if not isinstance(row, dict):
        raise InputError(
            f"{where}: {_kind(row)}", 'expected an object such as {"' + next(iter(fields), "a") + '": ...}'
        )
    for name, check in fields.items():
        if name not in row:
            raise InputError(f"{where}: no {name!r}", nearest(name, row) if row else "the object is empty")
        wrong = check(row[name])
        if wrong:
            raise InputError(f"{where}: {name} {wrong}")
    return row


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's pairs; a key that stands twice is a ValueError."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"{twice!r} stands twice")
    return found


def reject_nan(name: str) -> None:
    """NaN and infinity, which Python reads and JSON has not."""
    raise ValueError(f"{name} is no number")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")
