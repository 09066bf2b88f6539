"""Parse a request body into named samples: images (multipart, or the body itself) or texts (JSON, or a table)."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.files.regular_files import require_few_containers
from bigmodel_cli.core.files.scratch import scratch_folder
from bigmodel_cli.core.readers.json_lines import text_problem
from bigmodel_cli.core.readers.text_samples import AS_FOUND, Reading, TextTooLongError, read_texts, require_short
from bigmodel_cli.serve.http_errors import HttpRefusal

MAX_DRAIN = 8  # times the size limit: what is read and thrown away of a body that is too large, before the reply
BINARY = {"schema": {"type": "string", "format": "binary"}}
FORM = {"schema": {"type": "object", "properties": {"file": {"type": "array", "items": BINARY["schema"]}}}}
IMAGES: Mapping[str, Any] = {"image/*": BINARY, "multipart/form-data": FORM}
"""The bodies that :func:`images` reads, as OpenAPI says it."""
NAMES = 8
"""Strings of a request in JSON that are none of its samples, such as its keys."""
TEXT = {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
TABLES = {"text/csv": ".csv", "text/tab-separated-values": ".tsv", "application/x-ndjson": ".jsonl"}
"""The type of a table's body -> the suffix of such a file."""
TEXTS: Mapping[str, Any] = {
    "application/json": {"schema": {"type": "object", "required": ["text"], "properties": {"text": TEXT}}},
    **{kind: {"schema": {"type": "string"}} for kind in TABLES},
}
"""The bodies that :func:`texts` reads."""


@dataclass(frozen=True)
class Limits:
    """`size`: bytes per body. `pixels`: per image. `samples`: per request. `seconds`: for the body to arrive."""

    size: int
    pixels: int
    samples: int
    seconds: float


async def read_body(request: Request, limits: Limits, reserve: Callable[[int], None]) -> bytes:
    """Read the whole body; `reserve` is called with the size of each piece before it is kept.

    Raises:
        HttpRefusal: 413, it is larger than the limit; 408, it did not arrive in time; 400, it is empty; or whatever
            `reserve` raised.
    """
    received = bytearray()
    size = 0
    try:
        async with asyncio.timeout(limits.seconds):
            async for chunk in request.stream():
                size += len(chunk)
                if size <= limits.size:
                    reserve(len(chunk))
                    received += chunk
                elif size > limits.size * MAX_DRAIN:
                    break  # do not read forever, although closing while the client sends may lose the response
    except TimeoutError:
        raise HttpRefusal(408, f"the body did not arrive within {limits.seconds:g} s", close=True) from None
    if size > limits.size:
        raise HttpRefusal(413, f"the body is larger than {limits.size} bytes", close=size > limits.size * MAX_DRAIN)
    if not size:
        raise HttpRefusal(400, "the body is empty", hint="curl --data-binary @FILE, or -F file=@FILE")
    return bytes(received)


def images(content_type: str, body: bytes, limits: Limits) -> list[tuple[str, bytes]]:
    """(name, bytes) of each image.

    Raises:
        HttpRefusal: 400, the body does not match its content type; 413, too many images; 415, not an image type.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return _files(content_type, body, limits)
    if kind.startswith(("application/json", "text/", "application/x-www-form-urlencoded")) and not _binary(body):
        raise HttpRefusal(415, f"a body of type {kind}", "expected an image, or multipart/form-data with images")
    return [("image", body)]


def _binary(body: bytes) -> bool:
    """curl sends images as application/x-www-form-urlencoded unless told otherwise."""
    return any(byte < 9 or byte > 126 for byte in body[:16])


class _Parts:
    """Callbacks for python-multipart: files are kept in memory, other fields are dropped."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.files: list[tuple[str, bytearray]] = []
        self.parts, self.whole = 0, False
        self._file = False
        self._field, self._value, self._disposition = bytearray(), bytearray(), b""

    def on_part_begin(self) -> None:
        self.parts, self._file, self._disposition = self.parts + 1, False, b""
        if self.parts > self.most:
            raise HttpRefusal(413, "too many parts in a form", f"expected at most {self.most}")

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._field, self._value = bytearray(), bytearray()

    def on_headers_finished(self) -> None:
        options = parse_options_header(self._disposition)[1]
        if b"filename" in options:
            self._file = True
            name = options[b"filename"].decode("utf-8", "replace")
            self.files.append((name or f"image {len(self.files) + 1}", bytearray()))

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._file:
            self.files[-1][1].extend(data[start:end])

    def on_end(self) -> None:
        self.whole = True


def _files(content_type: str, body: bytes, limits: Limits) -> list[tuple[str, bytes]]:
    found = _Parts(limits.samples)
    calls = {name: getattr(found, name) for name in dir(found) if name.startswith("on_")}
    try:
        boundary = parse_options_header(content_type)[1][b"boundary"]
        parser = MultipartParser(boundary, cast("Any", calls))
        parser.write(body)
        parser.finalize()
    except KeyError:
        raise HttpRefusal(400, "multipart/form-data without a boundary") from None
    except (FormParserError, ValueError) as error:
        raise HttpRefusal(400, f"bad multipart body: {error}") from None
    if not found.whole:
        raise HttpRefusal(400, "bad multipart body: it ends without its last boundary")
    if not found.files:
        raise HttpRefusal(400, "no file in the form", hint="curl -F file=@FILE")
    return [(name, bytes(content)) for name, content in found.files]


def texts(content_type: str, body: bytes, limits: Limits, how: Reading = AS_FOUND) -> list[tuple[str, str]]:
    """(name, text) of each text in ``{"text": "..."}`` or ``{"text": ["...", ...]}``, or in the rows of a table.

    A table is read as the training data was, which `how` says, or by the usual names of columns.

    Raises:
        HttpRefusal: 400, the body is anything else; 413, too many texts.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind in TABLES:
        return _rows(kind, body, limits, how)
    given = read_json(body, limits.samples, 'expected {"text": "..."}')
    text = given.get("text") if isinstance(given, dict) and set(given) == {"text"} else None
    found = [text] if isinstance(text, str) else text
    if not isinstance(found, list) or not found or not all(isinstance(t, str) for t in found):
        raise HttpRefusal(
            400, "the JSON is not what was expected", 'expected {"text": "..."} or {"text": ["...", "..."]}'
        )
    _check_count(len(found), limits)
    named = [(f"text {number}", one) for number, one in enumerate(found, 1)]
    for name, one in named:
        wrong = "is empty" if not one.strip() else "has a NUL in it" if "\0" in one else text_problem(one)
        if wrong:
            raise HttpRefusal(400, f"{name} {wrong}", "expected text")
        try:
            require_short(name, one)
        except TextTooLongError as error:
            raise HttpRefusal(413, error.what, error.expected) from None
    return named


def read_json(body: bytes, most: int, expected: str) -> Any:
    """The JSON in a body that may have `most` strings, apart from a few that name them.

    A string of two characters takes 5 bytes in the body and 60 in memory, an empty list 3 and 64: they are counted
    before. Of a string that holds escaped quotation marks, at least one is left to be counted.

    Raises:
        HttpRefusal: 400, it is no JSON; 413, it has more strings, or more lists and objects than its size explains.
    """
    try:
        require_few_containers(Path("the body"), body)
    except InputError as error:
        raise HttpRefusal(413, error.what, error.expected) from None
    if body.count(b'"') - body.count(b'\\"') > 2 * (most + NAMES):
        raise HttpRefusal(413, "too many strings in a request", f"expected at most {most}")
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise HttpRefusal(400, "the body is not JSON", expected) from None


def _check_count(count: int, limits: Limits) -> None:
    if count > limits.samples:
        raise HttpRefusal(413, f"{count} texts in a request", f"expected at most {limits.samples}")


def _rows(kind: str, body: bytes, limits: Limits, how: Reading) -> list[tuple[str, str]]:
    """The texts of a table, by the columns of the training data if it has them, else by the usual names."""
    found: list[tuple[str, str]] = []
    with scratch_folder() as folder:
        file = folder / f"table{TABLES[kind]}"
        file.write_bytes(body)
        fitting = AS_FOUND
        try:
            with contextlib.suppress(InputError):  # another table than that of training
                next(read_texts(file, "text", how), None)
                fitting = how
            for name, text in read_texts(file, "text", fitting):
                found.append((f"row {name.rpartition(':')[2]}", text))
                _check_count(len(found), limits)
        except InputError as error:
            what = error.what.replace(f"{file}:", "row ").replace(f"{file}", "the table")
            too_long = isinstance(error, TextTooLongError)
            raise HttpRefusal(413 if too_long else 400, what, error.expected) from None
    return found
