"""One label a sample in several columns of a table: 1 in the column of its class, 0 in the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.readers.tables import Table, as_text
from bigmodel_cli.core.readers.truth import truth_of


def has_several(given: Mapping[str, str] | None) -> bool:
    """Whether ``--columns`` names several columns for the label."""
    return "+" in (given or {}).get("label", "")


def one_label(table: Table, cells: Sequence[Any], where: str) -> str:
    """The label of a row whose label columns have `cells`: the column's name where they are one-hot, else their text.

    Raises:
        InputError: they are all 0 or 1, and not exactly one is 1; or one is no text.
    """
    texts = [str(cell).lower() if type(cell) is bool else as_text(cell, where, "label").strip() for cell in cells]
    names = [table.chosen.names[i].strip() for i in table.chosen.places["label"]]
    held = [truth_of(text) for text in texts]
    if len(names) == 1 or None in held:
        return " ".join(text for text in texts if text)
    if held.count(True) != 1:
        hint = "several labels a sample: --task multi_label_classification"
        what = f"{where}: {held.count(True)} of the columns {', '.join(names[:5])} are 1"
        raise InputError(what, "expected one", hint)
    return names[held.index(True)]
