"""The user's own labelled texts as fastText reads them: ``__label__pos a fine film``, a text a line."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bigmodel_cli.core.counted import counted
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.readers.fasttext import is_fasttext, read_fasttext
from bigmodel_cli.core.readers.label_cells import LabelCells
from bigmodel_cli.core.readers.text_files import AUTO
from bigmodel_cli.core.registry import data
from bigmodel_cli.core.splits import splits_among
from bigmodel_cli.core.types import DataBundle, TextSpec
from bigmodel_cli.data.targets import MULTI_LABEL, Labels, labelled_with
from bigmodel_cli.data.text.labelled import Context, Vocabulary, build_labelled, untrained_note
from bigmodel_cli.data.text.tokenizer_choice import as_text_spec
from bigmodel_cli.data.user_data.text_files import Encoding
from bigmodel_cli.data.user_path import UserPath


def split_files(path: Path) -> dict[str, Path]:
    """Split -> fastText file: `path` itself as train, or the files of a folder that are called as splits are.

    It is empty if there are none, or if another file of the folder is called as a split.
    """
    if not path.is_dir():
        return {"train": path} if is_fasttext(path) else {}
    files = {f.name.partition(".")[0]: f for f in sorted(path.iterdir()) if f.is_file() and not f.name.startswith(".")}
    named = splits_among(files)
    if not named or len(set(named.values())) < len(named) or not all(is_fasttext(files[name]) for name in named):
        return {}
    return {split: files[name] for name, split in named.items()}


def _reads(given: UserPath) -> float:
    return 4.0 * bool(not given.is_address and given.path.exists() and split_files(given.path))


@dataclass
class FastTextSplit:
    """A :class:`bigmodel_cli.data.text.labelled.LabelledSplit` whose texts are read again when they are needed."""

    file: Path
    encoding: str
    labels: array[int] = field(default_factory=lambda: array("i"))

    def texts(self) -> Iterator[tuple[str, str | None]]:
        return ((text, None) for _, _, text in read_fasttext(self.file, self.encoding) if text)


def _read(path: Path, encoding: str, notes: list[str], label: Any) -> dict[str, FastTextSplit]:
    """The splits; `label` gives the number of the labels of a line, which it is called with, and where the line is."""
    splits: dict[str, FastTextSplit] = {}
    for split, file in split_files(path).items():
        part, empty = splits.setdefault(split, FastTextSplit(file, encoding)), 0
        for number, labels, text in read_fasttext(file, encoding, notes):
            where = f"{file}:{number}"
            if not labels:
                raise InputError(f"{where}: no label", "expected __label__NAME in every line")
            empty += not text
            if text:
                part.labels.append(label(labels, where))
        notes += [f"{file.name}: {counted(empty, 'line')} not used: an empty text"] if empty else []
    if not splits:
        raise InputError(f"{path}: no lines that begin with __label__", "expected fastText's format")
    notes.append("read as fastText's format: the words that begin with __label__ are labels")
    return splits


@data.register(task="text_classification", reads=_reads, next="train text-cnn")
def fasttext_file(
    root: Path,
    like: TextSpec | None = None,
    *,
    path: str,
    tokenizer: Vocabulary = "auto",
    context: Context = None,
    encoding: Encoding = AUTO,
) -> DataBundle:
    """Your own labelled texts in fastText's format: `__label__NAME text`, a line each; or a file a split."""
    notes, cells, ids = list[str](), LabelCells("label"), dict[str, int]()

    def number(labels: list[str], where: str) -> int:
        if len(labels) > 1:
            hint = "several labels a sample: --task multi_label_classification"
            raise InputError(f"{where}: {len(labels)} labels", "expected one", hint)
        return ids.setdefault(cells.read(labels[0], lambda: where), len(ids))

    splits = _read(Path(path).expanduser(), encoding, notes, number)
    classes = sorted(ids)
    place = {ids[name]: i for i, name in enumerate(classes)}
    for part in splits.values():
        part.labels = array("i", [place[i] for i in part.labels])
    notes += [*cells.notes(classes), *untrained_note(splits, classes)]
    return build_labelled(splits, classes, tokenizer, as_text_spec(like), context, root, notes)


@data.register(tasks=("multi_label_classification",), reads=_reads, next="train text-cnn")
def fasttext_targets(
    root: Path,
    like: TextSpec | None = None,
    task: str | None = None,
    *,
    path: str,
    tokenizer: Vocabulary = "auto",
    context: Context = None,
    encoding: Encoding = AUTO,
) -> DataBundle:
    """Your own texts with several labels in fastText's format: `__label__A __label__B text`, a line each."""
    notes, labels = list[str](), Labels(MULTI_LABEL, ("labels",))
    splits = _read(Path(path).expanduser(), encoding, notes, lambda names, where: labels.add([names], where))
    notes += labels.notes(splits["train"].labels if "train" in splits else ())
    found = build_labelled(splits, labels.names(), tokenizer, as_text_spec(like), context, root, notes)
    return labelled_with(found, labels)
