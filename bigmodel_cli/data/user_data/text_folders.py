"""The user's own texts in class folders, a file each: ``[split/]<class>/<file>``, as aclImdb and 20 Newsgroups are."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bigmodel_cli.core.counted import counted
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.image.image_names import is_hidden
from bigmodel_cli.core.image.images import image_suffixes
from bigmodel_cli.core.readers.text_files import AUTO, read_text
from bigmodel_cli.core.registry import data
from bigmodel_cli.core.types import DataBundle, TextSpec
from bigmodel_cli.data.image.class_folders import arrange
from bigmodel_cli.data.image.listing import Item, file_item
from bigmodel_cli.data.text.labelled import Context, Vocabulary, build_labelled, digest_of
from bigmodel_cli.data.text.tokenizer_choice import as_text_spec
from bigmodel_cli.data.user_data.folder_walk import list_files, suffix_of
from bigmodel_cli.data.user_data.text_files import Encoding, first_notes
from bigmodel_cli.data.user_path import PLAIN_TEXT, UserPath

SUFFIXES = frozenset((*PLAIN_TEXT, ""))
DEPTH, LOOKED_AT = 4, 5
"""Folders below each other, and entries of each, that are looked at to see whether they hold texts."""


@dataclass(frozen=True)
class FileTexts:
    """A :class:`bigmodel_cli.data.text.labelled.LabelledSplit` whose texts are files, read when they are needed."""

    items: Sequence[Item]
    encoding: str
    notes: list[str] = field(default_factory=list)
    """What was guessed of the files' encodings when they were read last."""

    @property
    def labels(self) -> Sequence[int]:
        return [item.label for item in self.items]

    def texts(self) -> Iterator[tuple[str, str | None]]:
        self.notes.clear()
        for item in self.items:
            yield read_text(Path(item.file), self.encoding, self.notes), None


def _is_class_folders(given: UserPath) -> float:
    """A folder whose folders hold texts, unless it holds a table, which may say more."""
    if not given.is_dir or given.table is not None:
        return 0
    below = [f for f in given.path.iterdir() if f.is_dir() and not is_hidden(f.name)]
    first = sorted(below)[:LOOKED_AT]
    texts = any(_holds_text(folder, DEPTH) for folder in first)
    return 0.75 * (texts and not any(_holds_image(folder, DEPTH) for folder in first))


def _holds_image(folder: Path, depth: int) -> bool:
    """Whether there is an image among the first files in `folder`, or in the folders in it."""
    with os.scandir(folder) as entries:
        first = [entry for entry in itertools.islice(entries, 4 * LOOKED_AT) if not is_hidden(entry.name)]
    if any(suffix_of(entry.name) in image_suffixes() for entry in first if entry.is_file()):
        return True
    return depth > 1 and any(_holds_image(Path(d.path), depth - 1) for d in first[:LOOKED_AT] if d.is_dir())


def _holds_text(folder: Path, depth: int) -> bool:
    """Whether the first files in `folder`, or in the folders in it, are text."""
    with os.scandir(folder) as entries:
        first = [entry for entry in itertools.islice(entries, 4 * LOOKED_AT) if not is_hidden(entry.name)]
    files = [entry for entry in first if entry.is_file()]
    if files:
        texts = [f for f in files[:LOOKED_AT] if suffix_of(f.name) in SUFFIXES]
        return 2 * sum(_is_text(f.path) for f in texts) > min(len(files), LOOKED_AT)
    return depth > 1 and any(_holds_text(Path(d.path), depth - 1) for d in first[:LOOKED_AT] if d.is_dir())


def _is_text(file: str) -> bool:
    with open(file, "rb") as opened:  # noqa: PTH123
        return b"\0" not in opened.read(512)


@data.register(task="text_classification", reads=_is_class_folders, next="train text-cnn", whole_files=True)
def text_folders(
    root: Path,
    like: TextSpec | None = None,
    *,
    path: str,
    tokenizer: Vocabulary = "auto",
    context: Context = None,
    encoding: Encoding = AUTO,
) -> DataBundle:
    """Your own labelled texts in class folders, a file each: `[split/]<class>/<file>`."""
    where, notes = Path(path).expanduser().absolute(), list[str]()
    tree = list_files(str(where), SUFFIXES, notes)
    listing = arrange(str(where), tree, lambda file: file_item(file, file[len(str(where)) + 1 :]), "texts")
    notes += listing.notes
    splits: dict[str, FileTexts] = {}
    for split, items in listing.splits.items():
        filled = [item for item in items if item.size]
        notes += (
            [f"{split}: {counted(len(items) - len(filled), 'empty file')} not used"] if len(filled) < len(items) else []
        )
        splits[split] = FileTexts(filled, encoding)
    if listing.problem is not None and "train" in splits:
        raise InputError(listing.problem.what, listing.problem.expected, listing.problem.hint)
    digest = digest_of(splits)
    notes += first_notes([note for part in splits.values() for note in part.notes])
    return build_labelled(splits, listing.classes, tokenizer, as_text_spec(like), context, root, notes, digest)
