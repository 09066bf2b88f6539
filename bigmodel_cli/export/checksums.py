"""SHA256SUMS: the digest of every file of an export, in the format of ``sha256sum``, which can check it too.

One digest, that of this file, stands for the whole folder. It finds every changed byte, but is no signature: whoever
changes the folder can write a new one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.files.regular_files import open_regular

SUMS = "SHA256SUMS"
MAX_BYTES = 1 << 22
LINE = re.compile(r"([0-9a-f]{64})  ([^\0\n\r\\]{1,500})")


def digests(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of each file, by its path in the folder.

    Raises:
        InputError: one is no regular file, or cannot be read.
    """
    found = {}
    for file in files:
        with open_regular(file) as stream:
            found[file.relative_to(folder).as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


def sums_text(folder: Path) -> str:
    """The text of SHA256SUMS for every file that is in `folder` now, sorted by name."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / SUMS)
    return "".join(f"{digest}  {name}\n" for name, digest in digests(folder, files).items())


def read_sums(folder: Path) -> dict[str, str]:
    """The digest of each file by its path in the folder.

    Raises:
        InputError: SHA256SUMS is missing or damaged.
    """
    file = folder / SUMS
    try:
        if not file.is_file():
            raise InputError(f"{file}: not there", hint="restore it from a copy, or export it again")
        with file.open("rb") as stream:
            lines = stream.read(MAX_BYTES).decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read: {error}", hint="export it again") from None
    matches = [LINE.fullmatch(line) for line in lines]
    found = {match[2]: match[1] for match in matches if match}
    if not found or len(found) != len(lines):
        raise InputError(f"{file}: damaged", "expected one line '<SHA-256>  <file>' for each file", "export it again")
    return found


def is_file_of(folder: Path, file: Path) -> bool:
    """Whether `file`, with its links followed, is a regular file in `folder`. No error for a name that can be none."""
    try:
        return file.resolve().is_relative_to(folder.resolve()) and file.is_file()
    except (OSError, ValueError, RuntimeError):  # too long; a NUL or half a surrogate pair in it; links in a circle
        return False


def verify(folder: Path, expected: Mapping[str, str]) -> None:
    """Check the files of `folder` against their digests.

    Raises:
        InputError: a file has changed, is missing, or lies outside the folder.
    """
    for name, digest in expected.items():
        file = folder / name
        if not is_file_of(folder, file):
            raise InputError(f"{file}: not there", hint="restore it from a copy, or export it again")
        if digests(folder, [file]) != {name: digest}:
            hint = f"restore it, export it again, or if the change is yours, put its new digest into {SUMS}"
            raise InputError(f"{file}: not the file that was exported", hint=hint)
