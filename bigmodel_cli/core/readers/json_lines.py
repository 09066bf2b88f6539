"""A strict reader for JSON lines and arrays of objects, checked against JSON's rules and the required fields."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bigmodel_cli.core.errors import InputError, nearest
from bigmodel_cli.core.files.compressed import without_compression
from bigmodel_cli.core.readers.text_files import AUTO, numbered_lines, open_text, read_blocks, read_text

MAX_LINE_CHARS = 8 << 20  # characters of a line
Check = Callable[[Any], str | None]
"""What is wrong with a value, or None."""


def text_problem(value: Any) -> str | None:
    """What is wrong with `value` as text, or None. Integers are accepted, for labels."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            return f"character {error.start} is half a surrogate pair"
        return None
    return None if type(value) is int else f"is {kind_of(value)}, expected text"


def read_records(
    path: Path, fields: Mapping[str, Check], encoding: str = AUTO, notes: list[str] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The location (``file:line``) and the object of each non-empty line.

    JSON is UTF-8 (RFC 8259). "auto" also accepts the encoding of a byte order mark, but never guesses.

    Raises:
        InputError: a line is not an object with `fields`, or the file is empty.
    """
    found = False
    for number, row in read_objects(path, encoding, fields):
        found = True
        yield f"{path}:{number}", row
    if not found:
        raise InputError(f"{path}: it is empty", f"expected a line with {' and '.join(fields)}")


def read_objects(
    path: Path, encoding: str = AUTO, fields: Mapping[str, Check] = MappingProxyType({})
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number and the object of each non-empty line, or of each item of the array in a ``.json`` file.

    A ``.json`` file may also have lines, or one object that holds them, as ``{"data": [...]}``.

    Raises:
        InputError: see :func:`read_records`; a line is not in the encoding.
    """
    encoding = resolve_encoding(path, encoding)
    if without_compression(path.name).endswith(".json") and not _has_lines(path, encoding):
        yield from _items(path, encoding, fields)
        return
    for number, line in numbered_lines(path, encoding):
        if line.strip():
            yield number, parse_record(f"{path}:{number}", line, fields)


def object_keys(row: Mapping[str, Any]) -> Iterator[str]:
    """The keys of an object; those of an object in it are ``outer.inner``."""
    for name, value in row.items():
        if isinstance(value, dict) and value:
            yield from (f"{name}.{inner}" for inner in object_keys(value))
        else:
            yield name


def value_inside(row: Mapping[str, Any], name: str, missing: object) -> Any:
    """The value of a key such as ``outer.inner``; `missing` if it is not there."""
    value: Any = row
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            return missing
        value = value[part]
    return value


def _wrapped(value: dict[str, Any]) -> list[Any] | None:
    """The items in an object that only holds them, as ``{"data": [...]}``; None if it is an item itself."""
    lists = [value[name] for name in ("data", "rows", "examples", "items", "records") if name in value]
    return lists[0] if len(lists) == 1 and isinstance(lists[0], list) else None


def _has_lines(path: Path, encoding: str) -> bool:
    """Whether the first line that is not empty is an object by itself."""
    with open_text(path, encoding, newline="\n") as file:
        try:
            first = next((line for line in iter(lambda: file.readline(MAX_LINE_CHARS), "") if line.strip()), "{}")
            found = json.loads(first)
            return isinstance(found, dict) and _wrapped(found) is None
        except (ValueError, RecursionError):
            return False


def _items(path: Path, encoding: str, fields: Mapping[str, Check]) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        whole = json.loads(read_text(path, encoding), object_pairs_hook=unique_keys, parse_constant=reject_nan)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {error}", "expected an array of objects, or one object a line") from None
    if isinstance(whole, dict):
        whole = _wrapped(whole) or whole
    if not isinstance(whole, list):
        raise InputError(f"{path}: {kind_of(whole)}", "expected an array of objects, or one object a line")
    for number, row in enumerate(whole, 1):
        yield number, check_record(f"{path}:{number}", row, fields)


def resolve_encoding(path: Path, encoding: str) -> str:
    """Resolve "auto" to the encoding of the byte order mark, else to UTF-8.

    Raises:
        InputError: a line is not UTF-8; the message names it.
    """
    if encoding != AUTO:
        return encoding
    line, rest = 1, b""
    for i, block in enumerate(read_blocks(path)):
        if i == 0 and block[:2] in (b"\xff\xfe", b"\xfe\xff"):
            return "utf-32" if block[:4] in (b"\xff\xfe\0\0", b"\0\0\xfe\xff") else "utf-16"
        # Decode complete lines, so that no character is split at the end of a block.
        complete, newline, remainder = (rest + block).rpartition(b"\n")
        line, rest = _utf8(path, complete + newline, line), remainder
        if len(rest) > 4 * MAX_LINE_CHARS:
            raise InputError(
                f"{path}:{line}: more than {len(rest)} bytes", f"expected at most {MAX_LINE_CHARS} characters"
            )
    _utf8(path, rest, line)
    return "utf-8"


def _utf8(path: Path, part: bytes, line: int) -> int:
    """Check `part`, which begins with line `line`; returns the number of the line after it."""
    try:
        part.decode()
    except UnicodeDecodeError as error:
        at = line + part[: error.start].count(b"\n")
        what = f"{path}:{at}: not UTF-8: a byte is {part[error.start]:#04x}"
        raise InputError(what, "expected JSON in UTF-8", "--set data.encoding=latin-1, if it is Latin-1") from None
    return line + part.count(b"\n")


def parse_record(where: str, line: str, fields: Mapping[str, Check]) -> dict[str, Any]:
    """The object in `line` at the location `where`, with each of `fields` checked.

    Raises:
        InputError: the line is too long or not JSON (duplicate keys and NaN are not), or a field is missing or wrong.
    """
    if len(line) > MAX_LINE_CHARS:
        raise InputError(f"{where}: {len(line)} characters", f"expected at most {MAX_LINE_CHARS}")
    try:
        row = json.loads(line, object_pairs_hook=unique_keys, parse_constant=reject_nan)
    except (ValueError, RecursionError) as error:  # too many digits, or nested too deeply
        raise InputError(f"{where}: not JSON: {error}", "expected one object a line") from None
    return check_record(where, row, fields)


def check_record(where: str, row: Any, fields: Mapping[str, Check]) -> dict[str, Any]:
    """`row`, which is at the location `where`, if it is an object with each of `fields`.

    Raises:
        InputError: it is not, or a field is missing or wrong.
    """
    if not isinstance(row, dict):
        raise InputError(
            f"{where}: {kind_of(row)}", 'expected an object such as {"' + next(iter(fields), "a") + '": ...}'
        )
    for name, check in fields.items():
        if name not in row:
            raise InputError(f"{where}: no {name!r}", nearest(name, row) if row else "the object is empty")
        wrong = check(row[name])
        if wrong:
            raise InputError(f"{where}: {name} {wrong}")
    return row


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object from its pairs; a duplicate key is a ValueError."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"duplicate key {twice!r}")
    return found


def reject_nan(name: str) -> None:
    """Refuse NaN and infinity, which Python reads but JSON does not allow."""
    raise ValueError(f"{name} is not a number")


def kind_of(value: Any) -> str:
    """The kind of a JSON value, in words."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")
