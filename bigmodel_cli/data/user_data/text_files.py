"""The user's own texts: plain files and folders, JSON lines, tables. The suffix decides the format."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from bigmodel_cli.core.counted import counted
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.image.images import describe_unused, image_suffixes
from bigmodel_cli.core.readers.columns import Columns, GroupBy
from bigmodel_cli.core.readers.tables import JSON_LINES, Table, as_text, open_table, table_suffix
from bigmodel_cli.core.readers.text_files import AUTO, read_text
from bigmodel_cli.core.registry import data
from bigmodel_cli.core.splits import splits_among
from bigmodel_cli.core.types import DataBundle, TextSpec
from bigmodel_cli.data.subset import divide
from bigmodel_cli.data.text.labelled import Context as TextContext
from bigmodel_cli.data.text.labelled import Vocabulary, build_labelled
from bigmodel_cli.data.text.parallel import Context as PairContext
from bigmodel_cli.data.text.parallel import Pairs, Pieces, Size, build_parallel, read_pair
from bigmodel_cli.data.text.tokenizer_choice import Tokenizer, as_text_spec, choose_tokenizer, window_length
from bigmodel_cli.data.text.windows import Context, Separate, build_windows
from bigmodel_cli.data.token_shards.tokenizing import list_text_files
from bigmodel_cli.data.user_data.text_tables import find_splits, labelled_splits
from bigmodel_cli.data.user_path import PLAIN_TEXT, UserPath, rows_with

Encoding = Annotated[str, Field(description="of the files: auto, utf-8, latin-1, utf-16, ...")]
ValShare = Annotated[
    float | None,
    Field(gt=0, lt=0.9, description="share at the end that validates; null: data.val_fraction, by a hash of each"),
]
MAX_NOTES = 3


def _is_text(given: UserPath) -> float:
    """Plain text, and tables with a text, which may be more to another; a folder of such files and no folders.

    JSON lines are read as this even without a text, to say what they lack.
    """
    if not given.is_dir:
        if given.table is None or table_suffix(given.table) in JSON_LINES:
            return given.suffix in PLAIN_TEXT or given.table is not None
        return 1 if given.has_columns(("text",)) else 0.25 * (not given.columns)
    inside = [f for f in given.path.iterdir() if not f.name.startswith(".")]
    texts = [f for f in inside if f.suffix.lower() in (*PLAIN_TEXT, *JSON_LINES)]
    images = sum(f.suffix.lower() in image_suffixes() for f in inside)  # with a text for each, as of boxes or captions
    return bool(texts) and not any(f.is_dir() for f in inside) and len(texts) > 2 * images


@data.register(task="language_modeling", reads=_is_text, next="train gpt-nano")
def text_files(
    root: Path,
    like: TextSpec | None = None,
    val_fraction: float = 0.1,
    split_seed: int = 0,
    *,
    path: str,
    tokenizer: Tokenizer = "auto",
    context: Context | None = None,
    encoding: Encoding = AUTO,
    val_share: ValShare = None,
    separate: Separate = False,
    columns: Columns | None = None,
) -> DataBundle:
    """Your own text for language models: a file, a folder of files, or a table or JSON lines with `text`."""
    notes, like = list[str](), as_text_spec(like)
    found, empty = list(_documents(Path(path).expanduser(), encoding, columns, notes)), 0
    if len(found) > 1:
        count = len(found)
        found = [both for both in found if both[1]]
        empty = count - len(found)
    documents = [document for _, document in found]
    notes += first_notes(list(filter(None, (table_note(*both) for both in found if not table_suffix(path)))))
    if not any(documents):
        raise InputError(f"{path}: it is empty", "expected text")
    several = len(documents) > 1
    spec = choose_tokenizer(tokenizer, like, context or window_length(like), root, documents, several)
    notes = [*first_notes(notes), *([f"{empty} empty documents skipped"] if empty else [])]
    if not several:  # one text has nothing but its end
        cut = int(len(documents[0]) * (1 - (val_share or val_fraction)))
        return build_windows(spec, {"train": documents[0][:cut], "val": documents[0][cut:]}, notes)
    parts = _named_splits(found, notes) if val_share is None else None
    if parts is None:
        parts = divide(documents, [name for name, _ in found], val_fraction, split_seed, val_share, path, notes)
    elif "val" not in parts:
        parts |= _with_val(parts["train"], val_fraction, split_seed, path, notes)
    return build_windows(spec, parts, notes, separate)


def _with_val(train: list[str], val_fraction: float, split_seed: int, path: str, notes: list[str]) -> dict[str, Any]:
    """Train and val of the documents of train: the end of a single one."""
    if len(train) > 1:
        return divide(train, train, val_fraction, split_seed, None, path, notes)
    cut = int(len(train[0]) * (1 - val_fraction))
    return {"train": [train[0][:cut]], "val": [train[0][cut:]]}


TABLE_LINES = 50  # lines that are looked at to see whether a text is a table
IMAGE_NAME = re.compile(r"\S+\.(?:jpe?g|png|webp|bmp|gif|tiff?)[\s,;]", re.IGNORECASE)


def table_note(name: str, text: str) -> str | None:
    """A note where each of the first lines of a plain text is a row of a table, or names an image."""
    lines = [line for line in text[: 1 << 16].split("\n")[: TABLE_LINES + 1] if line.strip()][:TABLE_LINES]
    if len(lines) < 3:
        return None
    tabs = {line.count("\t") for line in lines}
    if len(tabs) == 1 and (cells := tabs.pop() + 1) > 1:
        return f"{name}: each line has {cells} cells between tabs; read as plain text: as a table it is called .tsv"
    if all(IMAGE_NAME.match(line) for line in lines):
        return f"{name}: each line begins with an image's name; read as plain text: a .csv of image,label is a table"
    return None


def _named_splits(found: Sequence[tuple[str, str]], notes: list[str]) -> dict[str, list[str]] | None:
    """The documents by split, where files (or the folders they are in) are called as splits; None if none is train.

    `found` are paths of files with their texts, as of :func:`_documents`.
    """
    first = {name.partition("/")[0]: name for name, _ in found}
    splits = splits_among(name if "/" in path else name.rpartition(".")[0] for name, path in first.items())
    parts: dict[str, list[str]] = {}
    unused = []
    for name, text in found:
        top, inside, _ = name.partition("/")
        split = splits.get(top if inside else top.rpartition(".")[0])
        if split is None:
            unused.append(name)
        else:
            parts.setdefault(split, []).append(text)
    if "train" not in parts or len(parts) < 2:
        return None
    notes.append("splits by the names of files: " + ", ".join(f"{name} {len(part):,}" for name, part in parts.items()))
    if unused:
        shown = ", ".join(unused[:3]) + (", ..." if len(unused) > 3 else "")
        notes.append(f"{counted(len(unused), 'file')} not used: beside the splits: {shown}")
    return parts


def unused_files(folder: Path, used: Sequence[Path]) -> list[str]:
    """A note of the files below `folder` that are not `used`, by suffix."""
    known = set(used)
    others = [f for f in folder.rglob("*") if f not in known and f.is_file() and not f.name.startswith(".")]
    return [describe_unused(Counter(f.suffix.lower() or "no suffix" for f in others))] if others else []


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
    context: TextContext = None,
    encoding: Encoding = AUTO,
    columns: Columns | None = None,
    group_by: GroupBy = None,
) -> DataBundle:
    """Your own labelled texts: a table or JSON with `text` and `label`, optionally `split`; or one a split."""
    notes = list[str]()
    splits, classes, digest = labelled_splits(Path(path).expanduser(), columns, group_by, encoding, notes)
    return build_labelled(splits, classes, tokenizer, as_text_spec(like), context, root, notes, digest)


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
    context: PairContext = None,
    encoding: Encoding = AUTO,
    val_share: ValShare = None,
    columns: Columns | None = None,
    group_by: GroupBy = None,
) -> DataBundle:
    """Your own translation pairs: a table or JSON with `source` and `target`, or two line-aligned files."""
    file, notes = Path(path).expanduser(), list[str]()
    if target is not None:
        splits = {"train": read_pair(file, Path(target).expanduser(), encoding, notes)}
        groups: dict[str, list[str]] = {}
    else:
        splits, groups = _pair_splits(file, columns, group_by, encoding, notes)
    if val_share is not None and set(splits) == {"train"}:
        parts = divide(list(zip(*splits["train"], strict=True)), (), 0, 0, val_share, file, notes)
        splits = {name: ([a for a, _ in part], [b for _, b in part]) for name, part in parts.items()}
        groups = {}
    return build_parallel(splits, tokenizer, as_text_spec(like), vocabulary, context, notes, groups)


def _pair_splits(
    file: Path, columns: Mapping[str, str] | None, group_by: str | None, encoding: str, notes: list[str]
) -> tuple[dict[str, Pairs], dict[str, list[str]]]:
    """The pairs of each split, and the group of each pair if there is a column of groups."""

    def accept(table: Table, line: int, split: str, values: list[Any]) -> str | None:
        empty = [
            not as_text(value, table.located(line), role).strip() for value, role in zip(values, sides, strict=True)
        ]
        return f"an empty {sides[empty.index(True)]}" if any(empty) else None

    sides = ("source", "target")
    splits: dict[str, Pairs] = {}
    groups: dict[str, list[str]] = {}
    for split, rows in find_splits(file, sides, columns, group_by, encoding, notes, accept).items():
        pairs = splits[split] = ([], [])
        for table, line, (source, aim, group) in rows.values(*sides, "group"):
            pairs[0].append(as_text(source, table.located(line), "source"))
            pairs[1].append(as_text(aim, table.located(line), "target"))
            if group is not None:
                groups.setdefault(split, []).append(f"group {group}")
    return splits, groups


def _documents(
    path: Path, encoding: str, columns: Mapping[str, str] | None, notes: list[str]
) -> Iterator[tuple[str, str]]:
    """Each text with what its side of a split depends on: its file's name, or in a table the text."""
    files = [path] if table_suffix(path) else list_text_files(path)
    if path.is_dir():
        notes += unused_files(path, files)
    if columns and not any(map(table_suffix, files)):
        raise InputError(f"{path}: --columns for plain text", "expected a table, which has columns", "leave it out")
    for file in files:
        if not table_suffix(file):
            yield file.name if file == path else file.relative_to(path).as_posix(), read_text(file, encoding, notes)
            continue
        table = open_table(file, ("text",), columns, encoding, notes)
        for line, (text,) in table.rows("text"):
            plain = as_text(text, table.located(line), "text")
            yield plain, plain
