"""Reads text files in a declared or detected encoding. A guess adds a note, and errors name the byte."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TextIO, cast

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.files.compressed import DAMAGED, ERRORS, check_text, decompressed, is_compressed
from bigmodel_cli.core.files.regular_files import open_regular

MAX_BYTES = 4_000_000_000
BLOCK = 1 << 20
MAX_GROWTH = 20  # times that a compressed file may grow; text grows 3 to 5 times
MAX_LINE_BYTES = (32 << 20) + BLOCK  # of a file that is read line by line: the 8 M characters of a line of JSON
MIN_GROWN = 1 << 24  # bytes up to which it may grow more
AUTO = "auto"
MAX_NON_ASCII = 0.3  # fraction of bytes above 127 in text of a Latin alphabet
MIXED = 6  # bytes of UTF-8 before one that is not: text in another encoding is rarely valid UTF-8 for so long
MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
         (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip
NOT_CP1252 = bytes((0x81, 0x8D, 0x8F, 0x90, 0x9D))


class _Budgeted(io.BufferedIOBase):
    """The bytes of a text file, decompressed by its suffix; refused as soon as they exceed a budget.

    A line is counted from its last newline, before it is in memory as text: `longest_line` bytes at most.
    """

    def __init__(self, path: Path, raw: IO[bytes], most: int | None = None, longest_line: int | None = None) -> None:
        self.path, self.file, self.most, self.longest_line = path, decompressed(path, raw), most, longest_line
        size = os.fstat(raw.fileno()).st_size
        self.most_grown = max(MIN_GROWN, MAX_GROWTH * size) if is_compressed(path) else None
        self.total = self.line = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        return self._counted(self.file.read(size))

    def read1(self, size: int = -1, /) -> bytes:
        return self._counted(self.file.read1(size))

    def _counted(self, block: bytes) -> bytes:
        if not self.total:
            check_text(self.path, block)
        self.total += len(block)
        if self.most_grown and self.total > self.most_grown:
            what = f"{self.path}: refused: it grows more than {MAX_GROWTH} times when decompressed"
            raise InputError(what, "expected text", f"decompress {self.path}, where you trust it")
        if self.most and self.total > self.most:
            hint = "bigmodel data tokenize FILE" if self.most == MAX_BYTES else None
            raise InputError(f"{self.path}: more than {self.most:,} bytes", "expected a text that fits in memory", hint)
        if self.longest_line:
            newline = max(block.rfind(b"\n"), block.rfind(b"\r"))
            self.line = len(block) - 1 - newline + (self.line if newline < 0 else 0)
            if self.line > self.longest_line:
                raise InputError(f"{self.path}: a line of more than {self.line:,} bytes", "expected shorter lines")
        return block


def read_text(path: Path, encoding: str = "utf-8", notes: list[str] | None = None, most: int | None = None) -> str:
    """The text of a file, decompressed if its name ends in ``.gz``, ``.bz2`` or ``.xz``; `most` is in bytes.

    A byte order mark is dropped, and newlines become ``\\n``. The encoding "auto" is detected (see
    :func:`find_encoding`), and a guess is added to `notes`.

    Raises:
        InputError: the file is missing, damaged, not in this encoding, or contains a NUL.
    """
    raw = b"".join(read_blocks(path, most or MAX_BYTES))
    if encoding == AUTO:
        encoding, note = find_encoding(path, [raw])
        if note and notes is not None:
            notes.append(note)
    text = decode(raw, encoding, path)
    if "\0" in text:
        raise InputError(f"{path}: character {text.index(chr(0))} is NUL", "expected text", ENCODING_HINT)
    return text


ENCODING_HINT = "--set data.encoding=latin-1 (or utf-16, ...), or save the file as UTF-8"


def read_blocks(path: Path, most: int = MAX_BYTES) -> Iterator[bytes]:
    """The bytes of a file in blocks, decompressed if its name ends in ``.gz``, ``.bz2`` or ``.xz``.

    Raises:
        InputError: the file is missing, damaged, or larger than `most` bytes.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file")
    try:
        with open_regular(path) as raw:
            file = _Budgeted(path, raw, most)
            while block := file.read(BLOCK):
                yield block
    except (*ERRORS, zlib.error) as error:  # ValueError: a name with a NUL in it
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"{path}: cannot read: {reason}", "expected a text file") from None


@contextlib.contextmanager
def open_text(path: Path, encoding: str, newline: str = "") -> Iterator[TextIO]:
    """A text file to read line by line, decompressed as by :func:`read_blocks`; a byte order mark is dropped.

    Raises:
        InputError: the file is missing or damaged, a line is too long, or the encoding is unknown. A UnicodeError in
            the block is the caller's, who knows the line.
    """
    encoding = "utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding
    try:
        if not codecs.lookup(encoding)._is_text_encoding:
            raise LookupError
    except (LookupError, ValueError):  # ValueError: a NUL in the name
        raise InputError(f"unknown encoding {encoding!r}", "one of utf-8, latin-1, cp1252, utf-16, ...") from None
    if not path.exists():
        raise InputError(f"{path}: no such file")
    try:
        with (
            open_regular(path) as plain,
            _Budgeted(path, plain, longest_line=MAX_LINE_BYTES) as raw,
            io.TextIOWrapper(cast("io.BufferedReader", raw), encoding, newline=newline) as file,
        ):
            yield file
    except (*DAMAGED, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"{path}: cannot read: {reason}", "expected a text file") from None


def decode(raw: bytes, encoding: str, path: Path, offset: int = 0) -> str:
    """`raw`, which begins at byte `offset` of `path`, as text.

    Raises:
        InputError: the text is not in this encoding, or the encoding is unknown.
    """
    try:
        text = raw.decode("utf-8-sig" if encoding.lower() in ("utf-8", "utf8") and not offset else encoding)
    except UnicodeError as error:
        at = getattr(error, "start", 0)
        what = f"{path}: not {encoding}: byte {offset + at} is {raw[at]:#04x}"
        raise InputError(what, "expected text", ENCODING_HINT) from None
    except (LookupError, ValueError):  # ValueError: a NUL in the name
        raise InputError(f"unknown encoding {encoding!r}", "one of utf-8, latin-1, cp1252, utf-16, ...") from None
    if not isinstance(text, str):
        raise InputError(f"{encoding!r} is not a text encoding", "one of utf-8, latin-1, cp1252, utf-16, ...")
    return text.replace("\r\n", "\n")


def find_encoding(path: Path, blocks: Iterable[bytes]) -> tuple[str, str]:
    """The encoding of a file's bytes, and a note if it is a guess.

    A byte order mark decides. Otherwise it is UTF-8 if it decodes, since text in another encoding is rarely valid
    UTF-8. NUL in every second byte means UTF-16. Other text, if mostly ASCII, is read as Windows-1252, or as Latin-1
    if it has bytes that Windows-1252 does not define. Encodings of other alphabets cannot be told apart reliably.

    Raises:
        InputError: no encoding can be chosen reliably.
    """
    head, total, foreign, before, bad, value = b"", 0, 0, 0, -1, 0
    nuls, undefined = [0, 0], False
    decoder = codecs.getincrementaldecoder("utf-8")()
    for block in blocks:
        head = head or block[:4]
        if bad < 0:
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(block)
            except UnicodeDecodeError as error:
                bad, value = total - pending + error.start, error.object[error.start]
                before = foreign + _foreign(block[: max(0, error.start - pending)])
        if 0 in block:
            for parity in (0, 1):
                nuls[parity] += block[(parity - total) % 2 :: 2].count(0)
        if not block.isascii():
            foreign += _foreign(block)
            undefined = undefined or len(block.translate(None, NOT_CP1252)) < len(block)
        total += len(block)
    marked = next((name for mark, name in MARKS if head.startswith(mark)), None)
    if marked:
        return marked, ""
    if total % 2 == 0 and sum(nuls) > 0.3 * total and min(nuls) < max(nuls) / 4:
        guess = "utf-16-le" if nuls[1] > nuls[0] else "utf-16-be"
        return guess, f"{path}: NUL in every second byte: read as {guess}"
    if sum(nuls):
        raise InputError(f"{path}: {sum(nuls)} of its {total} bytes are NUL", "expected text", ENCODING_HINT)
    if bad < 0 and not decoder.getstate()[0]:
        return "utf-8", ""
    if bad < 0:
        cut = decoder.getstate()[0]
        bad, value = total - len(cut), cut[0]
    if foreign > MAX_NON_ASCII * total:
        what = f"{path}: not utf-8: byte {bad} is {value:#04x}, and {foreign / total:.0%} of the bytes are not ASCII"
        raise InputError(what, "expected an explicit encoding", "--set data.encoding=gb18030, koi8-r, ...")
    guess = "latin-1" if undefined else "cp1252"
    if before >= MIXED:
        what = f"{path}: UTF-8 up to byte {bad}, which is {value:#04x} and is not"
        raise InputError(what, "expected one encoding", f"repair it, or --set data.encoding={guess} reads all of it so")
    return guess, f"{path}: not UTF-8 (byte {bad} is {value:#04x}), read as {guess}; data.encoding names another"


def _foreign(block: bytes) -> int:
    """How many bytes are not ASCII."""
    return len(block) - len(block.translate(None, bytes(range(128, 256))))


def split_lines(text: str) -> list[str]:
    """The lines of `text`, split only at newlines and not at Unicode's other separators."""
    lines = text.split("\n")
    return lines[:-1] if lines and not lines[-1] else lines


def read_lines(path: Path, encoding: str = "utf-8", notes: list[str] | None = None) -> list[str]:
    """The lines of a text file, as :func:`read_text` reads it."""
    return split_lines(read_text(path, encoding, notes))


def numbered_lines(path: Path, encoding: str = AUTO) -> Iterator[tuple[int, str]]:
    """The number and the text of each line of a file, as :func:`read_lines` has them, in bounded memory.

    Raises:
        InputError: as :func:`read_text`; where one is not told the encoding, before the first line.
    """
    if encoding == AUTO:
        encoding = find_encoding(path, read_blocks(path))[0]
    number = 0
    with open_text(path, encoding, newline="\n") as file:
        try:
            for number, line in enumerate(file, 1):
                if "\0" in line:
                    raise InputError(f"{path}:{number}: a character is NUL", "expected text", ENCODING_HINT)
                yield number, line[:-2] if line.endswith("\r\n") else line.removesuffix("\n")
        except UnicodeError as error:
            at = number + 1 + lines_before(error)
            raise InputError(f"{path}:{at}: not {encoding}: {error}", "expected text", ENCODING_HINT) from None


def lines_before(error: UnicodeError) -> int:
    """The newlines between the last line that was read and what cannot be decoded, since blocks are decoded."""
    return error.object[: error.start].count(b"\n") if isinstance(error, UnicodeDecodeError) else 0
