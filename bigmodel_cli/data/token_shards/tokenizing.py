"""Text to token shards: what ``bigmodel data tokenize`` does, in several processes.

A corpus is cut into units: some lines of JSON, or a piece of a text that ends at the end of a line. Where a unit
ends depends on the files alone, and units are written in their order, so the shards are the same to the byte
whatever the number of processes. Everything is made in a hidden folder, which gets its name when it is whole.

Without torch: every process starts with this file.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import stat
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np

from bigmodel_cli.core.errors import InputError, MachineError
from bigmodel_cli.core.json_lines import parse_record, resolve_encoding, text_problem
from bigmodel_cli.core.special_tokens import END, SPECIALS
from bigmodel_cli.core.text_files import AUTO, decode, find_encoding, read_blocks
from bigmodel_cli.core.tokens import encode_many, tokenizer, train_bpe
from bigmodel_cli.core.types import TextSpec
from bigmodel_cli.data.token_shards.files import Writer

PLAIN = (".txt", ".text", ".md")
LINES = (".jsonl", ".ndjson")
PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")
UNIT = 1 << 20  # bytes a unit, about
WINDOW = 1 << 16  # bytes in which the end of a line is looked for
WHOLE = ("utf-16", "utf-32")  # a newline is no byte of its own: such files are one unit
TRAINING_BYTES = 1 << 30  # of text that a tokenizer is trained on
Progress = Callable[[str, int, int], None]
"""(what, bytes done, bytes in all)."""


@dataclass(frozen=True)
class Unit:
    """The bytes from `start` to `stop` of a file: whole lines. `last`: a text ends with it."""

    path: Path
    start: int
    stop: int
    encoding: str
    last: bool

    @property
    def lines(self) -> bool:
        return self.path.suffix.lower() in LINES

    def read(self) -> str:
        with self.path.open("rb") as file:
            file.seek(self.start)
            raw = file.read(self.stop - self.start)
        text = decode(raw, self.encoding, self.path, self.start)
        if "\0" in text:
            raise InputError(f"{self.path}: NUL in the text after byte {self.start}", "expected text")
        return text

    def documents(self) -> Iterator[str]:
        """The texts of a unit of JSON lines; of another one its piece of text, "" where it is empty.

        Raises:
            InputError: a line is wrong; ``:+n`` stands for the n-th of the unit.
        """
        if not self.lines:
            yield self.read()
            return
        for number, line in enumerate(self.read().split("\n")):
            if line.strip():
                yield str(parse_record(f"{self.path}:+{number}", line, {"text": text_problem})["text"])


@dataclass(frozen=True)
class Made:
    """What a process made of a unit: `ids` as bytes of the shards' type, and where documents end in it."""

    ids: bytes
    ends: list[int]
    newlines: int
    text_bytes: int
    error: tuple[str, str | None, str | None] | None = None


def plan(files: Iterable[Path], encoding: str) -> tuple[list[Unit], list[str]]:
    """The units of `files` in their order, and a note for each encoding that is a guess.

    Raises:
        InputError: a file cannot be read, or is in no encoding that can be told.
    """
    units: list[Unit] = []
    notes: list[str] = []
    for path in files:
        found, note = encoding, ""
        try:
            size, kind = path.stat().st_size, path.stat().st_mode
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}", "expected a text file") from None
        if not stat.S_ISREG(kind) or path.suffix.lower() in PACKED:
            raise InputError(f"{path}: no plain file", "expected text that is not packed, nor a pipe or a device")
        if path.suffix.lower() in LINES:
            found = resolve_encoding(path, encoding)
        elif encoding == AUTO:
            found, note = find_encoding(path, read_blocks(path))
        notes += [note] if note else []
        whole = found.lower().startswith(WHOLE)
        cuts = [0, *([] if whole else _cuts(path, size)), size]
        pieces = [(a, b) for a, b in itertools.pairwise(cuts) if b > a]
        units += [Unit(path, a, b, found, b == size) for a, b in pieces]
    return units, notes


def _cuts(path: Path, size: int) -> Iterator[int]:
    """Places after a newline between two signs that are not white space: no tokenizer joins a word across one.

    JSON lines may be cut after any newline.
    """
    pattern = re.compile(rb"\n" if path.suffix.lower() in LINES else rb"(?<=\S)\r?\n(?=\S)")
    with path.open("rb") as file:
        at = UNIT
        while at < size:
            file.seek(at - 2)  # what stands before a newline counts too
            found = pattern.search(file.read(WINDOW), 1)
            if found is None:
                at += WINDOW - 4
                continue
            if (cut := at - 2 + found.end()) < size:
                yield cut
            at = cut + UNIT


def trained_tokenizer(units: Sequence[Unit], size: int, tell: Progress) -> str:
    """The JSON of a byte-level BPE tokenizer of `size` tokens, trained on the units, or on every n-th of them."""
    total = sum(u.stop - u.start for u in units)
    chosen = units[:: -(-total // TRAINING_BYTES)]
    total = sum(u.stop - u.start for u in chosen)

    def texts() -> Iterator[str]:
        done = 0
        for unit in chosen:
            with located(unit, 0):
                yield from unit.documents()
            done += unit.stop - unit.start
            tell("training the tokenizer", done, total)

    return train_bpe(texts(), size, SPECIALS)


def characters(units: Sequence[Unit], tell: Progress) -> str:
    """Every character of the units, once."""
    found: set[str] = set()
    total, done = sum(u.stop - u.start for u in units), 0
    for unit in units:
        with located(unit, 0):
            found.update(*unit.documents())
        done += unit.stop - unit.start
        tell("collecting characters", done, total)
    return "".join(found)


@contextlib.contextmanager
def located(unit: Unit, before: int) -> Iterator[None]:
    """Errors of `unit`, before which its file has `before` newlines, with the number of the line in the file."""
    try:
        yield
    except InputError as error:
        raise _in_file(unit, before, error.what, error.expected, error.hint) from None


def _in_file(unit: Unit, before: int, what: str, expected: str | None, hint: str | None) -> InputError:
    where = f"{unit.path}:+"
    if what.startswith(where):
        number, _, rest = what.removeprefix(where).partition(":")
        what = f"{unit.path}:{before + int(number) + 1}:{rest}"
    return InputError(what, expected, hint)


_spec: TextSpec | None = None


def _begin(spec: TextSpec) -> None:
    """What a process does first: Ctrl-C is its parent's to hear, one core is its share, and it ends with its parent."""
    global _spec
    threading.Thread(target=_end_with, args=(parent_process(),), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _spec = spec


def _end_with(parent: Any) -> None:
    """Wait for the end of `parent`, which closes no pipe where it was killed, and end too."""
    parent.join()
    os._exit(1)


def _make(unit: Unit) -> Made:
    """The tokens of `unit`. An error is told rather than raised: its parent knows the line."""
    assert _spec is not None
    try:
        return make(unit, _spec)
    except InputError as error:
        return Made(b"", [], 0, 0, (error.what, error.expected, error.hint))


def make(unit: Unit, spec: TextSpec) -> Made:
    """The tokens of `unit`, ``<end>`` after each document that ends in it."""
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
    return Made(np.concatenate(ids).tobytes() if ids else b"", ends, newlines, size)


def id_type(size: int) -> np.dtype:
    """The smallest of the two types of shards that holds `size` ids, little-endian."""
    return np.dtype("<u2" if size <= 1 << 16 else "<u4")


def write(units: Sequence[Unit], spec: TextSpec, writer: Writer, processes: int, tell: Progress) -> None:
    """The tokens of every unit into `writer`, in order; each process has one unit at hand and one waiting.

    Raises:
        InputError: a file is not what its name says; the line is named.
        MachineError: a process was killed.
    """
    total, done = sum(u.stop - u.start for u in units), 0
    before: dict[Path, int] = {}
    for unit, made in zip(units, _in_order(units, spec, processes), strict=True):
        if made.error is not None:
            raise _in_file(unit, before.get(unit.path, 0), *made.error)
        before[unit.path] = before.get(unit.path, 0) + made.newlines
        writer.add(made.ids, made.ends, made.text_bytes)
        done += unit.stop - unit.start
        tell("tokenizing", done, total)


def _in_order(units: Sequence[Unit], spec: TextSpec, processes: int) -> Iterator[Made]:
    if processes == 1:
        global _spec
        _spec = spec
        yield from map(_make, units)
        return
    pool = ProcessPoolExecutor(processes, get_context("spawn"), _begin, (spec,))
    pending: deque[Future[Made]] = deque()
    try:
        for unit in units:
            pending.append(pool.submit(_make, unit))
            if len(pending) > 2 * processes:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool:
        hint = "fewer --processes, where memory ran out"
        raise MachineError("a process of the tokenizer was killed", hint=hint) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def text_of_files(path: Path) -> list[Path]:
    """`path` itself or, in the order of their names, the files of text below a folder.

    Raises:
        InputError: there are none.
    """
    if not path.is_dir():
        return [path]
    found = path.rglob("*")
    files = sorted(f for f in found if f.suffix.lower() in (*PLAIN, *LINES) and not f.name.startswith("."))
    if not files:
        raise InputError(f"{path}: no text in this folder", "expected files " + ", ".join((*PLAIN, *LINES)))
    return files
