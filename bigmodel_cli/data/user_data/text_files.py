"""One's own texts: plain files and folders, JSON lines, tables. The format is told by the name's end."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.json_lines import read_records, text_problem
from bigmodel_cli.core.registry import data
from bigmodel_cli.core.text_files import AUTO, read_text
from bigmodel_cli.core.types import DataBundle, TextSpec
from bigmodel_cli.data.text.labelled import Texts, Vocabulary, labelled
from bigmodel_cli.data.text.parallel import Pairs, Pieces, Size, parallel, read_pair
from bigmodel_cli.data.text.tokenizer_choice import Tokenizer, chosen, of_text
from bigmodel_cli.data.text.windows import Context, Separate, windows
from bigmodel_cli.data.token_shards.files import is_shards
from bigmodel_cli.data.token_shards.tokenizing import LINES, PLAIN, text_of_files

TABLES = {".csv": ",", ".tsv": "\t"}
Encoding = Annotated[str, Field(description="of the files: auto, utf-8, latin-1, utf-16, ...")]
BOTH = ("parallel_file", "labelled_file")  # read from tables too
ValShare = Annotated[float, Field(gt=0, lt=0.9, description="share at the end that validates")]
MOST_NOTES = 3


@data.register(task="language_modeling")
def text_files(
    root: Path,
    like: TextSpec | None = None,
    *,
    path: str,
    tokenizer: Tokenizer = "auto",
    context: Context | None = None,
    encoding: Encoding = AUTO,
    val_share: ValShare = 0.1,
    separate: Separate = False,
) -> DataBundle:
    """Your own text for language models: a file, a folder of them, or JSON lines with "text"."""
    notes, like = list[str](), of_text(like)
    documents, empty = list(_documents(Path(path).expanduser(), encoding, notes)), 0
    if len(documents) > 1:
        empty = documents.count("")
        documents = [document for document in documents if document]
    if not any(documents):
        raise InputError(f"{path}: it is empty", "expected text")
    several = len(documents) > 1
    spec = chosen(tokenizer, like, context or (like.context if like else 64), root, documents, several)
    notes = [*few(notes), *([f"{empty} empty documents left out"] if empty else [])]
    if not several:
        cut = int(len(documents[0]) * (1 - val_share))
        return windows(spec, {"train": documents[0][:cut], "val": documents[0][cut:]}, notes)
    cut = max(1, min(len(documents) - 1, round(len(documents) * (1 - val_share))))
    return windows(spec, {"train": documents[:cut], "val": documents[cut:]}, notes, separate)


def few(notes: Sequence[str]) -> list[str]:
    """The first notes, and how many more there are."""
    more = len(notes) - MOST_NOTES
    return [*notes[:MOST_NOTES], *([f"and {more} more files like these"] if more > 0 else [])]


@data.register(task="text_classification")
def labelled_file(
    root: Path,
    like: TextSpec | None = None,
    *,
    path: str,
    tokenizer: Vocabulary = "auto",
    context: Context = 64,
    encoding: Encoding = AUTO,
) -> DataBundle:
    """Your own texts with a class each: .csv, .tsv or .jsonl with text and label, and split where there is one."""
    file, notes = Path(path).expanduser(), list[str]()
    rows = list(_records(file, encoding, ("text", "label"), notes))
    classes = sorted({str(row["label"]) for row in rows})
    splits: dict[str, tuple[list[str], list[int]]] = {}
    for row in rows:
        texts, labels = splits.setdefault(str(row.get("split") or "train"), ([], []))
        texts.append(str(row["text"]))
        labels.append(classes.index(str(row["label"])))
    _check_splits(file, splits)
    return labelled(splits, classes, tokenizer, of_text(like), context, root, notes)


@data.register(task="translation")
def parallel_file(
    root: Path,
    like: TextSpec | None = None,
    *,
    path: str,
    target: str | None = None,
    tokenizer: Pieces = "auto",
    vocabulary: Size = 8000,
    context: Context = 64,
    encoding: Encoding = AUTO,
    val_share: ValShare = 0.1,
) -> DataBundle:
    """Your own pairs of texts: .csv, .tsv or .jsonl with source and target, or two files of as many lines."""
    file, notes = Path(path).expanduser(), list[str]()
    if target is not None:
        pairs: Pairs = read_pair(file, Path(target).expanduser(), encoding, notes)
    else:
        rows = list(_records(file, encoding, ("source", "target"), notes))
        pairs = [str(row["source"]) for row in rows], [str(row["target"]) for row in rows]
    cut = max(1, round(len(pairs[0]) * (1 - val_share)))
    if cut >= len(pairs[0]):
        raise InputError(f"{file}: {len(pairs[0])} pairs", "expected at least 2, some to validate")
    splits = {"train": (pairs[0][:cut], pairs[1][:cut]), "val": (pairs[0][cut:], pairs[1][cut:])}
    return parallel(splits, tokenizer, of_text(like), vocabulary, context, notes)


def _check_splits(file: Path, splits: Texts) -> None:
    wrong = set(splits) - {"train", "val", "test"}
    if wrong or "train" not in splits:
        found = ", ".join(sorted(splits)) or "no rows"
        raise InputError(f"{file}: splits {found}", "expected train, and perhaps val and test")


def _documents(path: Path, encoding: str, notes: list[str]) -> Iterator[str]:
    for file in text_of_files(path):
        if file.suffix.lower() in LINES:
            yield from (str(row["text"]) for row in _records(file, encoding, ("text",), notes))
        else:
            yield read_text(file, encoding, notes)


def _records(path: Path, encoding: str, columns: tuple[str, ...], notes: list[str]) -> Iterator[dict[str, Any]]:
    """The rows of a table or of JSON lines, each with `columns`.

    Raises:
        InputError: a line cannot be read or lacks a column; it is named.
    """
    kind, needs = path.suffix.lower(), " and ".join(columns)
    if kind in LINES:
        yield from (row for _, row in read_records(path, dict.fromkeys(columns, text_problem), encoding, notes))
        return
    if kind not in TABLES:
        raise InputError(f"{path}: {kind or 'no suffix'}", "expected .csv, .tsv or .jsonl")
    count = 0
    rows = csv.DictReader(io.StringIO(read_text(path, encoding, notes)), delimiter=TABLES[kind], strict=True)
    try:
        for row in rows:
            count += 1
            if any(row.get(c) is None for c in columns):
                raise InputError(f"{path}:{rows.line_num}: no {needs}", f"expected a first line with {needs}")
            yield row
    except csv.Error as error:
        raise InputError(f"{path}:{rows.line_num}: {error}", "expected a table") from None
    if not count:
        raise InputError(f"{path}: it is empty", f"expected rows with {needs}")


SOURCES = (
    ({"prompt", "chosen", "rejected"}, "preference_file"),
    ({"messages"}, "chat_file"),
    ({"prompt", "completion"}, "chat_file"),
    ({"source", "target"}, "parallel_file"),
    ({"text", "label"}, "labelled_file"),
)
"""What a first row names, and which source reads such rows."""


def source_for(path: Path) -> str | None:
    """Which source of text reads `path`, by its name and its first row; None: it is no text."""
    kind = path.suffix.lower()
    if path.is_dir():
        if is_shards(path):
            return "token_shards"
        inside = [f for f in path.iterdir() if not f.name.startswith(".")]
        flat = not any(f.is_dir() for f in inside)
        return "text_files" if flat and any(f.suffix.lower() in (*PLAIN, *LINES) for f in inside) else None
    if kind in PLAIN:
        return "text_files"
    if kind not in TABLES and kind not in LINES:
        return None
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            first = file.readline(1 << 24)
        columns = set(json.loads(first)) if kind in LINES else set(first.rstrip("\r\n").split(TABLES[kind]))
    except (OSError, ValueError, TypeError, RecursionError):
        columns = set()
    known = (source for names, source in SOURCES if names <= columns and (kind in LINES or source in BOTH))
    return next(known, "text_files" if kind in LINES else None)
