"""Reading text: encodings declared, or UTF-8; a file that is not what it says is named."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from bigmodel_cli.core.errors import InputError

MOST_BYTES = 4_000_000_000


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """The text of a file, gzipped where its name ends in ``.gz``; a byte order mark goes, newlines become ``\\n``.

    Raises:
        InputError: it is not there, damaged, or not in this encoding.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file", hint="--data-dir DIR, the folder of data files") from None
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"{path}: cannot read: {reason}", "expected a text file") from None
    if len(raw) > MOST_BYTES:
        raise InputError(f"{path}: more than {MOST_BYTES} bytes", "expected a text that fits in memory")
    try:
        text = raw.decode("utf-8-sig" if encoding == "utf-8" else encoding)
    except UnicodeDecodeError as error:
        what = f"{path}: not {encoding}: byte {error.start} is {raw[error.start]:#04x}"
        raise InputError(what, "expected text", "--set data.encoding=latin-1 where it is that") from None
    except LookupError:
        raise InputError(f"unknown encoding {encoding!r}", "one of utf-8, latin-1, cp1252, utf-16, ...") from None
    return text.replace("\r\n", "\n")


def read_lines(path: Path, encoding: str = "utf-8") -> list[str]:
    """The lines of a text file, split at newlines alone: Unicode's other separators stay in their line."""
    lines = read_text(path, encoding).split("\n")
    return lines[:-1] if lines and not lines[-1] else lines
