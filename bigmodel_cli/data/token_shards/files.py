"""The file format of token shards: ids in ``00000.bin``, ..., the ends of documents, and an index.

Does not import torch: see :mod:`bigmodel_cli.data.token_shards.tokenizing`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np

from bigmodel_cli.core.errors import InputError, MachineError
from bigmodel_cli.core.files import atomic_files, drafts
from bigmodel_cli.core.files.regular_files import open_regular, regular_stat
from bigmodel_cli.core.readers.json_lines import reject_nan, unique_keys
from bigmodel_cli.core.readers.text_files import read_text
from bigmodel_cli.core.special_tokens import END
from bigmodel_cli.core.tokenizers.tokens import tokenizer as build
from bigmodel_cli.core.types import TextSpec

FORMAT, VERSION = "bigmodel.tokens", 1
INDEX, TOKENIZER, ENDS = "index.json", "tokenizer.json", "documents.bin"
SHARD = re.compile(r"\d{5}\.bin")
MAX_INDEX_BYTES = 64_000_000
SHARD_TOKENS = 100_000_000
TYPES = {"uint16": "<u2", "uint32": "<u4"}


@dataclass
class _File:
    """A file being written, hashed on the way."""

    name: str
    out: IO[bytes]
    total: Any = field(default_factory=hashlib.sha256)
    size: int = 0

    def write(self, data: bytes) -> None:
        self.out.write(data)
        self.total.update(data)
        self.size += len(data)

    def close(self) -> dict[str, Any]:
        self.out.flush()
        os.fsync(self.out.fileno())
        self.out.close()
        return {"file": self.name, "sha256": self.total.hexdigest()}


class ShardWriter:
    """Write shards of up to `shard_tokens` ids to a hidden draft folder, which `finish` renames to `folder`.

    A context manager: on exit without `finish`, the draft is removed. If the process is killed, the next writer
    removes its draft.

    Raises:
        InputError: `folder` exists and is not empty, and `overwrite` is not set.
        MachineError: the disk is full or not writable.
    """

    def __init__(self, folder: Path, spec: TextSpec, shard_tokens: int, overwrite: bool = False) -> None:
        self.folder, self.spec, self.shard_tokens, self.overwrite = folder, spec, shard_tokens, overwrite
        check_writable(folder, overwrite)
        self.kind = "uint16" if build(spec).size <= 1 << 16 else "uint32"
        self._stack = contextlib.ExitStack()
        self.shards: list[dict[str, Any]] = []
        self.tokens = self.documents = self.text_bytes = 0
        self.current: _File | None = None

    def __enter__(self) -> Self:
        with self._disk_errors():
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            self.draft = self._stack.enter_context(drafts.draft(self.folder))
            self.ends = self._open(ENDS)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.close()

    def add(self, ids: bytes, ends: Sequence[int], text_bytes: int) -> None:
        """Append ids as bytes in the shards' type; `ends` are the positions in them after which a document ends."""
        width = np.dtype(TYPES[self.kind]).itemsize
        places = np.array(ends, "<u8") + np.uint64(self.tokens)
        with self._disk_errors():
            self.ends.write(places.tobytes())
            while ids:
                if self.current is None:
                    self.current = self._open(f"{len(self.shards):05}.bin")
                room = self.shard_tokens * width - self.current.size
                self.current.write(ids[:room])
                self.tokens += len(ids[:room]) // width
                ids = ids[room:]
                if self.current.size == self.shard_tokens * width:
                    self._close_shard()
        self.documents += len(ends)
        self.text_bytes += text_bytes

    def finish(self, source: dict[str, Any]) -> dict[str, Any]:
        """Close the files, write the index, publish the folder, and return the index's values."""
        with self._disk_errors():
            if self.current is not None:
                self._close_shard()
            known = build(self.spec)
            bpe = self.spec.tokenizer == "bpe"
            values: dict[str, Any] = {
                "format": FORMAT, "version": VERSION, "type": self.kind, "tokens": self.tokens,
                "documents": self.documents, "bytes": self.text_bytes, "vocabulary_size": known.size,
                "end": known.special[END], "tokenizer": self.spec.tokenizer,
                "vocabulary": [] if bpe else list(self.spec.vocabulary), "source": source,
                "ends": self.ends.close(), "shards": self.shards,
            }  # fmt: skip
            if bpe:
                file = self._open(TOKENIZER)
                file.write(self.spec.vocabulary[0].encode())
                values["tokenizer_file"] = file.close()
            file = self._open(INDEX)
            file.write((json.dumps(values, indent=1) + "\n").encode())
            file.close()
            self._publish()
        return values

    def _publish(self) -> None:
        atomic_files.sync_folder(self.draft)
        drafts.exchange(self.draft, self.folder)

    def _open(self, name: str) -> _File:
        return _File(name, (self.draft / name).open("wb"))

    def _close_shard(self) -> None:
        assert self.current is not None
        tokens = self.current.size // np.dtype(TYPES[self.kind]).itemsize
        self.shards.append({**self.current.close(), "tokens": tokens})
        self.current = None

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            what = f"{self.folder}: {error.strerror or error} after {self.tokens} tokens"
            raise MachineError(what, hint="give another --out") from None


def check_writable(folder: Path, overwrite: bool) -> list[str]:
    """Clean up after killed writers, and check that `folder` is free or may be replaced; returns notes for the user.

    Raises:
        InputError: it is a link, a file or a folder that is not empty; with `overwrite`, one without shards.
    """
    drafts.require_no_link(folder)
    notes = drafts.remove_leftovers(folder.parent, is_shards) if folder.parent.is_dir() else []
    if not folder.exists():
        return notes
    if not folder.is_dir():
        raise InputError(f"{folder}: it is a file", "expected a folder to create")
    if not any(folder.iterdir()):
        return notes
    if not overwrite:
        raise InputError(f"{folder}: it holds something", "expected a new folder", "--overwrite, or another --out")
    if not is_shards(folder):
        raise InputError(f"{folder}: it holds something other than shards", "expected shards to replace")
    return notes


def is_shards(folder: Path) -> bool:
    """Whether `folder` has an index of token shards."""
    try:
        with open_regular(folder / INDEX) as file:
            return f'"{FORMAT}"'.encode() in file.read(200)
    except (InputError, OSError):
        return False


@dataclass(frozen=True)
class Index:
    """The index of a folder of token shards, validated against its files."""

    folder: Path
    spec: TextSpec
    kind: np.dtype
    tokens: int
    documents: int
    shards: tuple[tuple[Path, int, str], ...]
    """Each file, its tokens and its SHA-256."""
    ends: tuple[Path, str]
    fingerprint: str
    text_bytes: int
    """Bytes of the text, in UTF-8."""

    def document_ends(self) -> np.ndarray:
        """(documents,) uint64: the token position after which each document ends."""
        return np.memmap(self.ends[0], "<u8", "r") if self.documents else np.zeros(0, "<u8")

    def document_lengths(self) -> tuple[int, int, int]:
        """Tokens of the shortest, the median and the longest document."""
        lengths = np.diff(self.document_ends(), prepend=np.uint64(0))
        return (int(lengths.min()), int(np.median(lengths)), int(lengths.max())) if len(lengths) else (0, 0, 0)

    def damaged_files(self) -> list[str]:
        """The files whose checksum does not match."""
        files = [(path, checksum) for path, _, checksum in self.shards] + [self.ends]
        return [path.name for path, checksum in files if _sha256(path) != checksum]


def read_index(folder: Path, context: int) -> Index:
    """Read the index in `folder` and check every size in it.

    Raises:
        InputError: it is damaged or malicious, or a file is missing or has another size.
    """
    path = folder / INDEX
    try:
        if regular_stat(path).st_size > MAX_INDEX_BYTES:
            raise InputError(f"{path}: more than {MAX_INDEX_BYTES} bytes", "expected an index of token shards")
        text = read_text(path)
        values = json.loads(text, object_pairs_hook=unique_keys, parse_constant=reject_nan)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {error}", "expected what bigmodel data tokenize wrote") from None
    try:
        return _index(folder, values, context, hashlib.sha256(text.encode()).hexdigest())
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        what = f"{path}: not an index of token shards ({type(error).__name__}: {error})"
        raise InputError(what, "expected what bigmodel data tokenize wrote") from None


def _index(folder: Path, values: Any, context: int, fingerprint: str) -> Index:
    if values["format"] != FORMAT or values["version"] != VERSION:
        raise InputError(f"{folder / INDEX}: version {str(values['version'])[:20]}", f"expected {VERSION}")
    kind = np.dtype(TYPES[values["type"]])
    vocabulary = tuple(str(token) for token in values["vocabulary"])
    if values["tokenizer"] == "bpe":
        file = folder / TOKENIZER
        vocabulary = (read_text(file),)
        if hashlib.sha256(vocabulary[0].encode()).hexdigest() != values["tokenizer_file"]["sha256"]:
            raise InputError(f"{file}: not the tokenizer that the shards were made with", "restore it")
    spec = TextSpec(str(values["tokenizer"]), vocabulary, context)
    known = build(spec)
    if END not in known.special or known.size > np.iinfo(kind).max + 1:
        raise InputError(f"{folder / INDEX}: a tokenizer of {known.size} tokens in {kind}", "expected it to fit")
    shards = []
    for shard in values["shards"]:
        name, count, checksum = shard["file"], shard["tokens"], shard["sha256"]
        if not SHARD.fullmatch(name) or type(count) is not int or type(checksum) is not str:
            raise InputError(f"{folder / INDEX}: shard {str(name)[:40]!r}", "expected 00000.bin, ... and its tokens")
        _check_file_size(folder / name, count * kind.itemsize)
        shards.append((folder / name, count, checksum))
    tokens, documents = values["tokens"], values["documents"]
    if type(documents) is not int or tokens != sum(count for _, count, _ in shards):
        raise InputError(f"{folder / INDEX}: {tokens} tokens", "expected as many as its shards hold")
    _check_file_size(folder / ENDS, 8 * documents)
    ends = (folder / ENDS, str(values["ends"]["sha256"]))
    return Index(folder, spec, kind, tokens, documents, tuple(shards), ends, fingerprint, int(values["bytes"]))


def _check_file_size(path: Path, expected: int) -> None:
    found = path.stat().st_size if path.is_file() and not path.is_symlink() else -1
    if found != expected:
        what = f"{path}: {found} bytes" if found >= 0 else f"{path}: no such file"
        raise InputError(what, f"the index says {expected}", "make the shards again, or copy them again")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
