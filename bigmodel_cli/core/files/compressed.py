"""Compressed files, by suffix; and what a file is whose content is not text, to say so."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from bigmodel_cli.core.errors import InputError


def _only_member(raw: IO[bytes]) -> Any:
    """The only file in a zip, as programs write a single compressed table.

    Raises:
        ValueError: it holds several, or a password protects it.
    """
    archive = zipfile.ZipFile(raw)
    files = [m for m in archive.infolist() if not m.is_dir() and not is_litter(m.filename)]
    if len(files) != 1 or files[0].flag_bits & 1:
        raise ValueError("a password protects it" if len(files) == 1 else f"a zip of {len(files)} files: unpack it")
    return archive.open(files[0])


def is_litter(name: str) -> bool:
    """Whether a member of an archive is one of those that macOS and others add."""
    return name.startswith("__MACOSX/") or name.rpartition("/")[2].startswith(".")


OPENERS: dict[str, Callable[[IO[bytes]], Any]] = {
    ".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zip": _only_member,
}  # fmt: skip
"""Suffix -> what decompresses such a file as it is read."""
ERRORS = (OSError, EOFError, ValueError, RuntimeError, lzma.LZMAError, zipfile.BadZipFile)
"""What reading a damaged one raises, apart from ``zlib.error``; RuntimeError: an unknown method of a zip."""
DAMAGED = (OSError, EOFError, RuntimeError, lzma.LZMAError, zipfile.BadZipFile)
"""The same without ValueError, which a UnicodeError is too."""
BEGINNINGS = {
    b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"(\xb5/\xfd": "Zstandard", b"7z\xbc\xaf'\x1c": "7-Zip",
    b"PK\3\4": "a zip, or a spreadsheet of Excel or LibreOffice", b"Rar!": "RAR", b"PAR1": "Parquet",
    b"%PDF-": "PDF", b"\xd0\xcf\x11\xe0": "an old file of Excel or Word", b"ARROW1": "Feather", b"\x89HDF": "HDF5",
    b"SQLite format 3\0": "SQLite", b"\x93NUMPY": "NumPy", b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", b"GIF8": "GIF",
}  # fmt: skip
"""The first bytes of files that are no text -> what such a file is."""
CONTROL = frozenset(range(9))
"""Bytes that are in those files, and in no text."""
HINTS = {"gzip": "give it the suffix .gz", "bzip2": "give it the suffix .bz2", "xz": "give it the suffix .xz"}


def is_compressed(path: Path) -> bool:
    return path.suffix.lower() in OPENERS


def decompressed(path: Path, raw: IO[bytes]) -> Any:
    """`raw`, the open file at `path`, as its content is."""
    return OPENERS[path.suffix.lower()](raw) if is_compressed(path) else raw


def without_compression(name: str) -> str:
    """A file's `name` in lower case, without the suffix of its compression."""
    name = name.lower()
    return next((name.removesuffix(suffix) for suffix in OPENERS if name.endswith(suffix)), name)


def check_text(path: Path, head: bytes) -> None:
    """Refuse a file whose content begins as that of another kind does.

    Raises:
        InputError: it does; the message says which.
    """
    kind = next((kind for begin, kind in BEGINNINGS.items() if head.startswith(begin)), None)
    if kind and (kind == "PDF" or CONTROL & set(head[:512])):  # a text may begin with the letters GIF8
        raise InputError(f"{path}: its content is {kind}", "expected text", HINTS.get(kind, "unpack or convert it"))
