"""The cells of a column of labels."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable
from typing import Any

from bigmodel_cli.core.class_names import doubtful_classes
from bigmodel_cli.core.counted import counted
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.readers.tables import AROUND, as_text


class LabelCells:
    """Reads the cells of a label column: blanks around a label are removed, and its characters composed (NFC)."""

    def __init__(self, column: str) -> None:
        self.column, self.trimmed = column, 0
        self.seen: dict[str, str] = {}
        """Cells that have been read and are their own label."""

    def read(self, value: Any, where: Callable[[], str]) -> str:
        """The label in a cell; `where` gives its location.

        Raises:
            InputError: it is empty, or no text, number or truth value.
        """
        if type(value) is str and value in self.seen:
            return self.seen[value]
        if isinstance(value, list):
            hint = "several labels a sample: --task multi_label_classification"
            raise InputError(f"{where()}: {self.column} is a list", "expected one label", hint)
        text = str(value).lower() if type(value) is bool else as_text(value, where(), self.column)
        label = unicodedata.normalize("NFC", AROUND.sub("", text))
        if not label:
            raise InputError(
                f"{where()}: no {self.column}",
                "expected a label in every row",
                "remove the row, or label it; with --task multi_label_classification a sample may have none",
            )
        if label == text:
            self.seen[text] = label
        self.trimmed += text != AROUND.sub("", text)
        return label

    def notes(self, classes: Iterable[str]) -> list[str]:
        """What a person should know of the labels; `classes` are all of them."""
        found = [f"{self.column}: blanks around {counted(self.trimmed, 'label')} removed"] if self.trimmed else []
        return found + [f"{self.column}: {note}" for note in doubtful_classes(classes)]
