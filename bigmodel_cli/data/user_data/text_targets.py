"""The user's own texts with several labels, or with numbers: a table with the text and the columns of the labels."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

from bigmodel_cli.core.class_names import AbsentTexts
from bigmodel_cli.core.readers.columns import Columns, GroupBy
from bigmodel_cli.core.readers.tables import Table, as_text
from bigmodel_cli.core.readers.text_files import AUTO
from bigmodel_cli.core.registry import data
from bigmodel_cli.core.types import DataBundle, TextSpec
from bigmodel_cli.data.targets import SEPARATOR, Labels, Separator, labelled_with, named_task
from bigmodel_cli.data.text.labelled import Context, Vocabulary, build_labelled
from bigmodel_cli.data.text.tokenizer_choice import as_text_spec
from bigmodel_cli.data.user_data.text_files import Encoding
from bigmodel_cli.data.user_data.text_tables import find_splits, label_columns
from bigmodel_cli.data.user_path import rows_with

ROLES = ("text", "label")


@data.register(
    tasks=("multi_label_classification", "regression"),
    reads=rows_with(ROLES, score=2, tables=True),
    next="train text-cnn",
)
def text_targets(
    root: Path,
    like: TextSpec | None = None,
    task: str | None = None,
    *,
    path: str,
    tokenizer: Vocabulary = "auto",
    context: Context = None,
    encoding: Encoding = AUTO,
    columns: Columns | None = None,
    group_by: GroupBy = None,
    separator: Separator = SEPARATOR,
) -> DataBundle:
    """Your own texts with several labels or with numbers: a table with `text` and one or more columns of labels."""
    file, notes = Path(path).expanduser(), list[str]()
    labels = Labels(named_task(task), label_columns(file, ROLES, columns, group_by, encoding), separator)
    numbered: dict[str, array[int]] = {}
    absent = AbsentTexts()

    def accept(table: Table, line: int, split: str, values: list[Any]) -> str | None:
        text, cells = values
        plain = text if type(text) is str else as_text(text, table.located(line), "text")
        if not plain.strip():
            return "an empty text"
        absent.add(plain)
        numbered.setdefault(split, array("i")).append(labels.add(cells, table.located(line)))
        return None

    splits = find_splits(file, ROLES, columns, group_by, encoding, notes, accept, apart=("label",))
    for split, rows in splits.items():
        rows.labels = numbered[split]
    notes += [*labels.notes(numbered.get("train", ())), *absent.notes()]
    found = build_labelled(splits, labels.names(), tokenizer, as_text_spec(like), context, root, notes)
    return labelled_with(found, labels)
