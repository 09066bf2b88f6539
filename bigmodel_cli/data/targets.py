"""Several labels or numbers per sample: a table of them over a split, and how the cells of a table are read.

Shapes: N samples, K labels or numbers.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from bigmodel_cli.core.counted import counted
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.readers.tables import AROUND
from bigmodel_cli.core.readers.truth import truth_of
from bigmodel_cli.core.sources import GroupedSource, LabelledSource, SourceWrapper
from bigmodel_cli.core.types import Batch, DataBundle, Source

MULTI_LABEL, REGRESSION = "multi_label_classification", "regression"
SEPARATOR = "|"
Separator = Annotated[str, Field(min_length=1, description="between the labels of a cell that names several")]
LONGEST_LIST = 10_000  # characters


class Targets(SourceWrapper):
    """`source`, whose labels number the rows of `table` (M,K), with those rows as its labels."""

    def __init__(self, source: Source, table: Tensor) -> None:
        if not isinstance(source, LabelledSource):
            raise TypeError("expected a source with labels")
        super().__init__(source)
        self.label_values = table[source.labels]
        del self.labels
        if isinstance(source, GroupedSource):
            self.groups = source.groups

    def gather(self, indices: Tensor) -> Batch:
        return {**self.source.gather(indices), "label": self.label_values[indices]}


def with_targets(
    load: Mapping[str, Callable[[], Source]], labels: Labels
) -> tuple[dict[str, Callable[[], Source]], Tensor]:
    """Loaders of the splits of `load` with the rows of `labels` as their labels, and the table of these (M,K)."""
    table = labels.targets()

    @functools.cache
    def loaded(split: str) -> Source:
        return Targets(load[split](), table)

    return {split: functools.partial(loaded, split) for split in load}, table


def labelled_with(bundle: DataBundle, labels: Labels) -> DataBundle:
    """`bundle` with the rows of `labels` as the labels of its splits; its fingerprint covers them."""
    load, table = with_targets(bundle.load, labels)
    digest = hashlib.sha256(bundle.fingerprint.encode() + table.numpy().tobytes()).hexdigest()
    return replace(bundle, load=load, fingerprint=digest)


class Labels:
    """The labels of samples, read cell by cell as `task` needs them: `add` numbers the rows that `targets` holds.

    With several `columns`, each is a label (1 or 0) or a number. One column holds a number or the names of the labels
    that hold, separated by `separator`.
    """

    def __init__(self, task: str, columns: Sequence[str], separator: str = SEPARATOR) -> None:
        self.task, self.columns, self.separator = task, tuple(columns), separator
        self.rows: list[tuple[float, ...]] = []
        self.sets: list[frozenset[str]] = []
        self.named = task == MULTI_LABEL and len(columns) == 1
        self.written = False  # whether a cell is text that may name several

    def add(self, cells: Sequence[Any], where: str) -> int:
        """The number of the row of `cells`, one per column, which stand at `where`.

        Raises:
            InputError: a cell is empty, or no number or no truth value.
        """
        if self.named:
            self.written |= isinstance(cells[0], str)
            self.sets.append(frozenset(names_in(cells[0], self.separator)))
        else:
            read: Callable[[Any, str, str], float] = _truth if self.task == MULTI_LABEL else _number
            row = [read(c, name, where) for c, name in zip(cells, self.columns, strict=True)]
            self.rows.append(tuple(row))
        return len(self.rows) + len(self.sets) - 1

    def names(self) -> tuple[str, ...]:
        """The K names of the labels or numbers.

        Raises:
            InputError: no label occurs.
        """
        if not self.named:
            return self.columns
        found = sorted({name for names in self.sets for name in names})
        if not found:
            raise InputError(
                f"no labels in the column {self.columns[0]}", f"expected names, several as a{self.separator}b"
            )
        return tuple(found)

    def targets(self) -> Tensor:
        """(M,K) float32."""
        if not self.named:
            return torch.tensor(self.rows, dtype=torch.float32).view(len(self.rows), len(self.columns))
        place = {name: k for k, name in enumerate(self.names())}
        found = torch.zeros(len(self.sets), len(place))
        for i, names in enumerate(self.sets):
            found[i, [place[name] for name in names]] = 1
        return found

    def notes(self, train: Iterable[int]) -> list[str]:
        """What a person should know of the rows `train`: samples without any label, and labels that do not vary."""
        if self.task != MULTI_LABEL:
            return []
        targets, names = self.targets(), self.names()
        bare = int((targets.sum(1) == 0).sum())
        seen = targets[torch.tensor(list(train), dtype=torch.int64)]
        constant = [n for n, mean in zip(names, seen.mean(0).tolist(), strict=True) if mean in (0, 1)]
        notes = [f"{counted(bare, 'sample')} without any label"] if bare else []
        if self.written and all(len(row) < 2 for row in self.sets):
            hint = "--set data.separator=... is what separates several"
            notes.append(f"no sample has several labels: each cell of {self.columns[0]} is read as one; {hint}")
        shown = ", ".join(constant[:5]) + (", ..." if len(constant) > 5 else "")
        return notes + ([f"labels that all or no training samples have: {shown}"] if constant else [])


def named_task(task: str | None) -> str:
    """The task that says how labels are read.

    Raises:
        InputError: none is given.
    """
    if task not in (MULTI_LABEL, REGRESSION):
        raise InputError("data.task is not given", f"expected {MULTI_LABEL} or {REGRESSION}", f"--task {REGRESSION}")
    return task


def names_in(cell: Any, separator: str = SEPARATOR) -> list[str]:
    """The labels of one cell: ``a|b``, or a list, of JSON or as Python writes it."""
    parts = cell if isinstance(cell, (list, tuple)) else _listed(str("" if cell is None else cell).strip(), separator)
    return [name for part in parts if (name := AROUND.sub("", str(part)))]


def _listed(text: str, separator: str) -> Sequence[Any]:
    if text.startswith("[") and text.endswith("]") and len(text) < LONGEST_LIST:
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            found = ast.literal_eval(text)
            if isinstance(found, list) and all(isinstance(name, (str, int)) for name in found):
                return found
    return text.split(separator)


def _number(cell: Any, column: str, where: str) -> float:
    text = str(cell if cell is not None else "").strip()
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if isinstance(cell, bool) or not math.isfinite(value):
        comma = ", with a decimal point" if re.fullmatch(r"-?\d+,\d+", text) else ""
        raise InputError(f"{where}: {column} is {text[:40]!r}", f"expected a number{comma}")
    return value


def _truth(cell: Any, column: str, where: str) -> float:
    text = str(cell if cell is not None else "").strip()
    value = truth_of(text)
    if value is None:
        raise InputError(f"{where}: {column} is {text[:40]!r}", "expected 1 or 0")
    return float(value)
