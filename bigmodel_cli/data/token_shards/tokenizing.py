"""Tokenize text into shards in several processes: the work of ``bigmodel data tokenize``.

A corpus is split into units: a number of JSON lines, or a stretch of text that ends at a line break. The split
depends only on the files, and units are written in order, so the shards are byte-identical for any number of
processes. They are written to a hidden folder, which is renamed when complete.

Does not import torch, because every worker process imports this module.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.processes.worker_pool import worker_pool
from bigmodel_cli.core.readers.json_lines import parse_record, resolve_encoding, text_problem
from bigmodel_cli.core.readers.tables import JSON_LINES
from bigmodel_cli.core.readers.text_files import AUTO, decode, find_encoding, read_blocks
from bigmodel_cli.core.special_tokens import END, SPECIALS
from bigmodel_cli.core.tokenizers.tokens import encode_many, tokenizer, train_bpe
from bigmodel_cli.core.types import TextSpec
from bigmodel_cli.data.token_shards.files import ShardWriter
from bigmodel_cli.data.user_path import TEXT

COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")
UNIT = 1 << 20  # bytes a unit, about
WINDOW = 1 << 16  # bytes in which the end of a line is looked for
UNSPLITTABLE = ("utf-16", "utf-32")  # a newline is no byte of its own: such files are one unit
TRAINING_BYTES = 1 << 30  # of text that a tokenizer is trained on
Progress = Callable[[str, int, int], None]
"""(what, bytes done, total bytes)."""


@dataclass(frozen=True)
class Unit:
    """The bytes from `start` to `stop` of a file, in whole lines. `last` is set if the file ends with it."""

    path: Path
    start: int
    stop: int
    encoding: str
    last: bool

    @property
    def lines(self) -> bool:
        return self.path.suffix.lower() in JSON_LINES

    def read(self) -> str:
        with self.path.open("rb") as file:
            file.seek(self.start)
            raw = file.read(self.stop - self.start)
        text = decode(raw, self.encoding, self.path, self.start)
        if "\0" in text:
            raise InputError(f"{self.path}: NUL in the text after byte {self.start}", "expected text")
        return text

    def documents(self) -> Iterator[str]:
        """The texts of JSON lines, or the unit's text as a whole, which may be "".

        Raises:
            InputError: a line is invalid; ``:+n`` stands for the n-th line of the unit.
        """
        if not self.lines:
            yield self.read()
            return
        for number, line in enumerate(self.read().split("\n")):
            if line.strip():
                yield str(parse_record(f"{self.path}:+{number}", line, {"text": text_problem})["text"])


@dataclass(frozen=True)
class TokenizedUnit:
    """The result for one unit: `ids` as bytes in the shards' type, and the `ends` of documents in them."""

    ids: bytes
    ends: list[int]
    newlines: int
    text_bytes: int
    error: tuple[str, str | None, str | None] | None = None


def plan_units(files: Iterable[Path], encoding: str) -> tuple[list[Unit], list[str]]:
    """Split `files` into units, in order; with a note for each guessed encoding.

    Raises:
        InputError: a file cannot be read, or its encoding cannot be determined.
    """
    units: list[Unit] = []
    notes: list[str] = []
    for path in files:
        found, note = encoding, ""
        try:
            size, kind = path.stat().st_size, path.stat().st_mode
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}", "expected a text file") from None
        if not stat.S_ISREG(kind) or path.suffix.lower() in COMPRESSED:
            raise InputError(f"{path}: no plain file", "expected uncompressed text, not a pipe or a device")
        if path.suffix.lower() in JSON_LINES:
            found = resolve_encoding(path, encoding)
        elif encoding == AUTO:
            found, note = find_encoding(path, read_blocks(path))
        notes += [note] if note else []
        whole = found.lower().startswith(UNSPLITTABLE)
        cuts = [0, *([] if whole else _split_points(path, size)), size]
        pieces = [(a, b) for a, b in itertools.pairwise(cuts) if b > a]
        units += [Unit(path, a, b, found, b == size) for a, b in pieces]
    return units, notes


def _split_points(path: Path, size: int) -> Iterator[int]:
    """Positions after a newline between two non-whitespace characters, where no tokenizer merges across.

    JSON lines may be split after any newline.
    """
    pattern = re.compile(rb"\n" if path.suffix.lower() in JSON_LINES else rb"(?<=\S)\r?\n(?=\S)")
    with path.open("rb") as file:
        at = UNIT
        while at < size:
            file.seek(at - 2)  # the pattern also matches what precedes a newline
            found = pattern.search(file.read(WINDOW), 1)
            if found is None:
                at += WINDOW - 4
                continue
            if (cut := at - 2 + found.end()) < size:
                yield cut
            at = cut + UNIT


def train_tokenizer(units: Sequence[Unit], size: int, report: Progress) -> str:
    """Train a byte-level BPE tokenizer of `size` tokens on all units, or on every n-th; returns its JSON."""
    total = sum(u.stop - u.start for u in units)
    chosen = units[:: -(-total // TRAINING_BYTES)]
    total = sum(u.stop - u.start for u in chosen)

    def texts() -> Iterator[str]:
        done = 0
        for unit in chosen:
            with locate_errors(unit, 0):
                yield from unit.documents()
            done += unit.stop - unit.start
            report("training the tokenizer", done, total)

    return train_bpe(texts(), size, SPECIALS)


def collect_characters(units: Sequence[Unit], report: Progress) -> str:
    """All distinct characters in the units."""
    found: set[str] = set()
    total, done = sum(u.stop - u.start for u in units), 0
    for unit in units:
        with locate_errors(unit, 0):
            found.update(*unit.documents())
        done += unit.stop - unit.start
        report("collecting characters", done, total)
    return "".join(found)


@contextlib.contextmanager
def locate_errors(unit: Unit, before: int) -> Iterator[None]:
    """Give errors in `unit` their line number in the file, which has `before` newlines before the unit."""
    try:
        yield
    except InputError as error:
        raise _with_line_number(unit, before, error.what, error.expected, error.hint) from None


def _with_line_number(unit: Unit, before: int, what: str, expected: str | None, hint: str | None) -> InputError:
    where = f"{unit.path}:+"
    if what.startswith(where):
        number, _, rest = what.removeprefix(where).partition(":")
        what = f"{unit.path}:{before + int(number) + 1}:{rest}"
    return InputError(what, expected, hint)


_spec: TextSpec | None = None


def _init_worker(spec: TextSpec) -> None:
    """What a process does first: one core is its share."""
    global _spec
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _spec = spec


def _tokenize_in_worker(unit: Unit) -> TokenizedUnit:
    """Tokenize `unit`. An error is returned rather than raised, since only the parent knows the line number."""
    assert _spec is not None
    try:
        return tokenize_unit(unit, _spec)
    except InputError as error:
        return TokenizedUnit(b"", [], 0, 0, (error.what, error.expected, error.hint))


def tokenize_unit(unit: Unit, spec: TextSpec) -> TokenizedUnit:
    """Tokenize `unit`, with ``<end>`` after each document that ends in it."""
    known = tokenizer(spec)
    kind, end = id_type(known.size), known.special[END]
    texts = [text for text in unit.documents() if text]
    ids: list[np.ndarray] = []
    ends: list[int] = []
    length = 0
    for row in encode_many(known, texts):
        part = np.frombuffer(row, np.uint8).astype(kind) if isinstance(row, bytes) else np.array(row, kind)
        closes = unit.lines or unit.last
        ids += [part, np.array([end], kind)] if closes else [part]
        length += len(part) + closes
        ends += [length] if closes else []
    with unit.path.open("rb") as file:
        file.seek(unit.start)
        newlines = file.read(unit.stop - unit.start).count(b"\n")
    size = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    return TokenizedUnit(np.concatenate(ids).tobytes() if ids else b"", ends, newlines, size)


def id_type(size: int) -> np.dtype:
    """The smaller of the two little-endian shard types that holds `size` ids."""
    return np.dtype("<u2" if size <= 1 << 16 else "<u4")


def write_units(units: Sequence[Unit], spec: TextSpec, writer: ShardWriter, processes: int, report: Progress) -> None:
    """Tokenize the units in `processes` and write them to `writer` in order.

    Raises:
        InputError: a line is invalid; the message names it.
        MachineError: a worker process was killed.
    """
    total, done = sum(u.stop - u.start for u in units), 0
    before: dict[Path, int] = {}
    for unit, made in zip(units, _tokenize_in_order(units, spec, processes), strict=True):
        if made.error is not None:
            raise _with_line_number(unit, before.get(unit.path, 0), *made.error)
        before[unit.path] = before.get(unit.path, 0) + made.newlines
        writer.add(made.ids, made.ends, made.text_bytes)
        done += unit.stop - unit.start
        report("tokenizing", done, total)


def _tokenize_in_order(units: Sequence[Unit], spec: TextSpec, processes: int) -> Iterator[TokenizedUnit]:
    if processes == 1:
        global _spec
        _spec = spec
        yield from map(_tokenize_in_worker, units)
        return
    pending: deque[Future[TokenizedUnit]] = deque()
    hint = "fewer --processes, if memory ran out"
    with worker_pool(processes, "a tokenizer process", hint, _init_worker, spec) as pool:
        for unit in units:
            pending.append(pool.submit(_tokenize_in_worker, unit))
            if len(pending) > 2 * processes:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def list_text_files(path: Path) -> list[Path]:
    """`path` itself, or the text files below a folder, sorted by name.

    Raises:
        InputError: there are none.
    """
    if not path.is_dir():
        return [path]
    files = sorted(f for f in path.rglob("*") if f.suffix.lower() in TEXT and not f.name.startswith("."))
    if not files:
        raise InputError(f"{path}: no text in this folder", "expected files " + ", ".join(TEXT))
    return files
