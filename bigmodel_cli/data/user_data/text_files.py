"""The user's own texts: plain files and folders, JSON lines, tables. The suffix decides the format."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.json_lines import read_records, text_problem
from bigmodel_cli.core.registry import data
from bigmodel_cli.core.text_files import AUTO, read_text
from bigmodel_cli.core.types import DataBundle, TextSpec
from bigmodel_cli.data.text.labelled import TextSplits, Vocabulary, build_labelled
from bigmodel_cli.data.text.parallel import Pairs, Pieces, Size, build_parallel, read_pair
from bigmodel_cli.data.text.tokenizer_choice import Tokenizer, as_text_spec, choose_tokenizer
from bigmodel_cli.data.text.windows import Context, Separate, build_windows
from bigmodel_cli.data.token_shards.tokenizing import list_text_files
from bigmodel_cli.data.user_path import JSON_LINES, PLAIN_TEXT, TABLES, UserPath, rows_with

Encoding = Annotated[str, Field(description="of the files: auto, utf-8, latin-1, utf-16, ...")]
ValShare = Annotated[float, Field(gt=0, lt=0.9, description="share at the end that validates")]
MAX_NOTES = 3


def _is_text(given: UserPath) -> float:
    """Plain text and JSON lines, whose columns may be more to another; a folder that has such files and no folders."""
    if not given.is_dir:
        return given.suffix in (*PLAIN_TEXT, *JSON_LINES)
    inside = [f for f in given.path.iterdir() if not f.name.startswith(".")]
    flat = not any(f.is_dir() for f in inside)
    return flat and any(f.suffix.lower() in (*PLAIN_TEXT, *JSON_LINES) for f in inside)


@data.register(task="language_modeling", reads=_is_text, next="train gpt-nano")
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
    """Your own text for language models: a file, a folder of files, or JSON lines with `text`."""
    notes, like = list[str](), as_text_spec(like)
    documents, empty = list(_documents(Path(path).expanduser(), encoding, notes)), 0
    if len(documents) > 1:
        empty = documents.count("")
        documents = [document for document in documents if document]
    if not any(documents):
        raise InputError(f"{path}: it is empty", "expected text")
    several = len(documents) > 1
    spec = choose_tokenizer(tokenizer, like, context or (like.context if like else 64), root, documents, several)
    notes = [*first_notes(notes), *([f"{empty} empty documents skipped"] if empty else [])]
    if not several:
        cut = int(len(documents[0]) * (1 - val_share))
        return build_windows(spec, {"train": documents[0][:cut], "val": documents[0][cut:]}, notes)
    cut = max(1, min(len(documents) - 1, round(len(documents) * (1 - val_share))))
    return build_windows(spec, {"train": documents[:cut], "val": documents[cut:]}, notes, separate)


def first_notes(notes: Sequence[str]) -> list[str]:
    """The first notes, and the number of the others."""
    more = len(notes) - MAX_NOTES
    return [*notes[:MAX_NOTES], *([f"and {more} more files like these"] if more > 0 else [])]


@data.register(
    task="text_classification", reads=rows_with(("text", "label"), score=2, tables=True), next="train text-cnn"
)
def labelled_file(
    root: Path,
    like: TextSpec | None = None,
    *,
    path: str,
    tokenizer: Vocabulary = "auto",
    context: Context = 64,
    encoding: Encoding = AUTO,
) -> DataBundle:
    """Your own labelled texts: .csv, .tsv or .jsonl with `text` and `label`, optionally `split`."""
    file, notes = Path(path).expanduser(), list[str]()
    rows = list(_records(file, encoding, ("text", "label"), notes))
    classes = sorted({str(row["label"]) for row in rows})
    splits: dict[str, tuple[list[str], list[int]]] = {}
    for row in rows:
        texts, labels = splits.setdefault(str(row.get("split") or "train"), ([], []))
        texts.append(str(row["text"]))
        labels.append(classes.index(str(row["label"])))
    _check_splits(file, splits)
    return build_labelled(splits, classes, tokenizer, as_text_spec(like), context, root, notes)


@data.register(
    task="translation", reads=rows_with(("source", "target"), score=3, tables=True), next="train transformer"
)
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
    """Your own translation pairs: .csv, .tsv or .jsonl with `source` and `target`, or two line-aligned files."""
    file, notes = Path(path).expanduser(), list[str]()
    if target is not None:
        pairs: Pairs = read_pair(file, Path(target).expanduser(), encoding, notes)
    else:
        rows = list(_records(file, encoding, ("source", "target"), notes))
        pairs = [str(row["source"]) for row in rows], [str(row["target"]) for row in rows]
    cut = max(1, round(len(pairs[0]) * (1 - val_share)))
    if cut >= len(pairs[0]):
        raise InputError(f"{file}: {len(pairs[0])} pairs", "expected at least 2, for train and val")
    splits = {"train": (pairs[0][:cut], pairs[1][:cut]), "val": (pairs[0][cut:], pairs[1][cut:])}
    return build_parallel(splits, tokenizer, as_text_spec(like), vocabulary, context, notes)


def _check_splits(file: Path, splits: TextSplits) -> None:
    wrong = set(splits) - {"train", "val", "test"}
    if wrong or "train" not in splits:
        found = ", ".join(sorted(splits)) or "no rows"
        raise InputError(f"{file}: splits {found}", "expected train, and optionally val and test")


def _documents(path: Path, encoding: str, notes: list[str]) -> Iterator[str]:
    for file in list_text_files(path):
        if file.suffix.lower() in JSON_LINES:
            yield from (str(row["text"]) for row in _records(file, encoding, ("text",), notes))
        else:
            yield read_text(file, encoding, notes)


def _records(path: Path, encoding: str, columns: tuple[str, ...], notes: list[str]) -> Iterator[dict[str, Any]]:
    """The rows of a table or of JSON lines, each with `columns`.

    Raises:
        InputError: a line cannot be read or lacks a column; the message names it.
    """
    kind, needs = path.suffix.lower(), " and ".join(columns)
    if kind in JSON_LINES:
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
