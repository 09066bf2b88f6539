"""One's own texts: plain files and folders, JSON lines, tables. The format is told by the name's end."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import data
from bigmodel_cli.core.text_files import read_lines, read_text
from bigmodel_cli.core.tokens import END, characters_of
from bigmodel_cli.core.tokens import tokenizer as build_tokenizer
from bigmodel_cli.core.types import DataBundle, TextSpec
from bigmodel_cli.data.labelled_text import Texts, labelled
from bigmodel_cli.data.parallel_text import Pairs, Size, parallel, read_pair
from bigmodel_cli.data.text import Context, windows

PLAIN = (".txt", ".text", ".md")
TABLES = {".csv": ",", ".tsv": "\t"}
LINES = (".jsonl", ".ndjson")
Encoding = Annotated[str, Field(description="of the files: utf-8, latin-1, ...")]
ValShare = Annotated[float, Field(gt=0, lt=0.9, description="share at the end that validates")]
MOST_LINE = 50_000_000  # characters of a line of JSON


@data.register()
def text_files(
    root: Path,
    *,
    path: str,
    tokenizer: Annotated[str, Field(description="char, byte, or the path of a tokenizer.json")] = "byte",
    context: Context = 64,
    encoding: Encoding = "utf-8",
    val_share: ValShare = 0.1,
) -> DataBundle:
    """Your own text for language models: a file, a folder of them, or JSON lines with "text"."""
    documents = list(_documents(Path(path).expanduser(), encoding))
    if tokenizer in ("byte", "char"):
        specials = (END,) if len(documents) > 1 else ()
        spec = TextSpec(tokenizer, characters_of(documents, specials) if tokenizer == "char" else (), context)
    else:
        spec = TextSpec("bpe", (read_text(Path(tokenizer).expanduser()),), context)
    build_tokenizer(spec)  # a hostile file is refused here, before anything is trained
    if len(documents) == 1:
        cut = int(len(documents[0]) * (1 - val_share))
        return windows(spec, {"train": documents[0][:cut], "val": documents[0][cut:]})
    cut = max(1, min(len(documents) - 1, round(len(documents) * (1 - val_share))))
    return windows(spec, {"train": documents[:cut], "val": documents[cut:]})


@data.register()
def labelled_file(
    root: Path,
    *,
    path: str,
    tokenizer: Literal["word", "char"] = "word",
    context: Context = 64,
    encoding: Encoding = "utf-8",
) -> DataBundle:
    """Your own texts with a class each: .csv, .tsv or .jsonl with text and label, and split where there is one."""
    file = Path(path).expanduser()
    rows = list(_records(file, encoding, ("text", "label")))
    classes = sorted({str(row["label"]) for row in rows})
    splits: dict[str, tuple[list[str], list[int]]] = {}
    for row in rows:
        texts, labels = splits.setdefault(str(row.get("split") or "train"), ([], []))
        texts.append(str(row["text"]))
        labels.append(classes.index(str(row["label"])))
    _check_splits(file, splits)
    return labelled(splits, classes, tokenizer, context)


@data.register()
def parallel_file(
    root: Path,
    *,
    path: str,
    target: str | None = None,
    tokenizer: Literal["bpe", "word"] = "bpe",
    vocabulary: Size = 8000,
    context: Context = 64,
    encoding: Encoding = "utf-8",
    val_share: ValShare = 0.1,
) -> DataBundle:
    """Your own pairs of texts: .csv, .tsv or .jsonl with source and target, or two files of as many lines."""
    file = Path(path).expanduser()
    if target is not None:
        pairs: Pairs = read_pair(file, Path(target).expanduser(), encoding)
    else:
        rows = list(_records(file, encoding, ("source", "target")))
        pairs = [str(row["source"]) for row in rows], [str(row["target"]) for row in rows]
    cut = max(1, round(len(pairs[0]) * (1 - val_share)))
    if cut >= len(pairs[0]):
        raise InputError(f"{file}: {len(pairs[0])} pairs", "expected at least 2, some to validate")
    splits = {"train": (pairs[0][:cut], pairs[1][:cut]), "val": (pairs[0][cut:], pairs[1][cut:])}
    return parallel(splits, tokenizer, vocabulary, context)


def _check_splits(file: Path, splits: Texts) -> None:
    wrong = set(splits) - {"train", "val", "test"}
    if wrong or "train" not in splits:
        found = ", ".join(sorted(splits)) or "no rows"
        raise InputError(f"{file}: splits {found}", "expected train, and perhaps val and test")


def _documents(path: Path, encoding: str) -> Iterator[str]:
    """The texts of a file or, in the order of their names, of the files below a folder."""
    files = [path]
    if path.is_dir():
        found = path.rglob("*")
        files = sorted(f for f in found if f.suffix.lower() in (*PLAIN, *LINES) and not f.name.startswith("."))
        if not files:
            raise InputError(f"{path}: no text in this folder", "expected files " + ", ".join((*PLAIN, *LINES)))
    for file in files:
        if file.suffix.lower() in LINES:
            yield from (str(row["text"]) for row in _records(file, encoding, ("text",)))
        else:
            yield read_text(file, encoding)


def _records(path: Path, encoding: str, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The rows of a table or of JSON lines, each with `columns`.

    Raises:
        InputError: a line cannot be read or lacks a column; it is named.
    """
    kind, needs = path.suffix.lower(), " and ".join(columns)
    count = 0
    if kind in TABLES:
        rows = csv.DictReader(io.StringIO(read_text(path, encoding)), delimiter=TABLES[kind], strict=True)
        try:
            for row in rows:
                count += 1
                if any(row.get(c) is None for c in columns):
                    raise InputError(f"{path}:{rows.line_num}: no {needs}", f"expected a first line with {needs}")
                yield row
        except csv.Error as error:
            raise InputError(f"{path}:{rows.line_num}: {error}", "expected a table") from None
    elif kind in LINES:
        for number, line in enumerate(read_lines(path, encoding), 1):
            if line.strip():
                count += 1
                yield _record(f"{path}:{number}", line, columns)
    else:
        raise InputError(f"{path}: {kind or 'no suffix'}", "expected .csv, .tsv or .jsonl")
    if not count:
        raise InputError(f"{path}: it is empty", f"expected rows with {needs}")


def _record(where: str, line: str, columns: tuple[str, ...]) -> dict[str, Any]:
    if len(line) > MOST_LINE:
        raise InputError(f"{where}: {len(line)} characters", f"expected at most {MOST_LINE}")
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # a number of too many digits, nesting without end
        raise InputError(f"{where}: not JSON: {error}", "expected one object a line") from None
    if not isinstance(row, dict) or not all(isinstance(row.get(c), (str, int)) for c in columns):
        raise InputError(f"{where}: no text in {' and '.join(columns)}", 'expected {"' + columns[0] + '": "..."}')
    return row


def source_for(path: Path) -> str | None:
    """Which of the sources here reads `path`, by its name and its first row; None: it is no text."""
    kind = path.suffix.lower()
    if path.is_dir():
        inside = [f for f in path.iterdir() if not f.name.startswith(".")]
        flat = not any(f.is_dir() for f in inside)
        return "text_files" if flat and any(f.suffix.lower() in (*PLAIN, *LINES) for f in inside) else None
    if kind in PLAIN:
        return "text_files"
    if kind not in TABLES and kind not in LINES:
        return None
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            first = file.readline(1 << 20)
        columns = set(json.loads(first)) if kind in LINES else set(first.strip("\ufeff\r\n").split(TABLES[kind]))
    except (OSError, ValueError, TypeError, RecursionError):
        columns = set()
    if {"source", "target"} <= columns:
        return "parallel_file"
    if {"text", "label"} <= columns:
        return "labelled_file"
    return "text_files" if kind in LINES else None
