"""Reads fastText's format: a text a line, with its labels in it as words that begin with ``__label__``."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.readers.text_files import AUTO, find_encoding, numbered_lines, read_blocks

PREFIX = "__label__"
SUFFIXES = (".txt", ".text", ".ft", ".train", ".valid", ".test")
LABEL = re.compile(rf"(?:^|(?<=\s)){PREFIX}(\S+)\s*")
LOOKED_AT = 20  # lines that must have a label, for a file to be recognised


def is_fasttext(path: Path) -> bool:
    """Whether the first lines of the file at `path` begin with a label, as fastText writes them."""
    if path.suffix.lower() not in SUFFIXES or not path.is_file():
        return False
    head = next(read_blocks(path), b"").splitlines()
    return _has_labels([line.lstrip(b"\xef\xbb\xbf").decode("latin-1") for line in head[:LOOKED_AT]])


def _has_labels(lines: Sequence[str]) -> bool:
    written = [line for line in lines if line.strip()]
    return bool(written) and all(line.lstrip(" \t").startswith(PREFIX) for line in written)


def without_labels(lines: Iterator[str]) -> Iterator[str]:
    """Lines as a file of them is read: without their labels, if fastText's format is recognised in the first ones."""
    head, problem = list[str](), None
    try:
        head.extend(itertools.islice(lines, LOOKED_AT))
    except InputError as error:  # what comes before it is still read
        problem = error
    labelled = _has_labels(head)
    for line in itertools.chain(head, lines):
        yield split_labels(line)[1] if labelled else line
    if problem:
        raise problem


def split_labels(line: str) -> tuple[list[str], str]:
    """The labels in a line, without their prefix, and the text without them."""
    return LABEL.findall(line), LABEL.sub("", line).strip()


def read_fasttext(
    path: Path, encoding: str = AUTO, notes: list[str] | None = None
) -> Iterator[tuple[int, list[str], str]]:
    """The number, the labels and the text of each line that is not blank; a guess of the encoding is added to `notes`.

    Raises:
        InputError: the file cannot be read.
    """
    if encoding == AUTO:
        encoding, note = find_encoding(path, read_blocks(path))
        if note and notes is not None:
            notes.append(note)
    for number, line in numbered_lines(path, encoding):
        if line.strip():
            yield number, *split_labels(line)
