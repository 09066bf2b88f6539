"""``--data PATH``: which registered data set reads what a person points at."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bigmodel_cli.core.registry import data

PLAIN_TEXT = (".txt", ".text", ".md")
JSON_LINES = (".jsonl", ".ndjson")
TABLES = {".csv": ",", ".tsv": "\t"}
ROW_BYTES = 1 << 24  # of the first row that are looked at

Reads = Callable[["UserPath"], float]
"""How surely a data set reads a path: 0, it does not; of several the largest. Above 1: by more than the file's name."""


@dataclass(frozen=True)
class UserPath:
    """What a person wrote: a path, an address, or a pattern of paths."""

    text: str

    @functools.cached_property
    def path(self) -> Path:
        return Path(self.text).expanduser()

    @property
    def suffix(self) -> str:
        return self.path.suffix.lower()

    @property
    def is_address(self) -> bool:
        """Whether it begins as ``https:`` or ``hf:`` do."""
        return re.match(r"[a-z]+:", self.text) is not None

    @property
    def is_pattern(self) -> bool:
        """Whether it stands for several tars, as ``train-{000..099}.tar`` does."""
        return self.text.endswith(".tar") and any(sign in self.text for sign in "{*")

    @functools.cached_property
    def is_dir(self) -> bool:
        return self.path.is_dir()

    @functools.cached_property
    def columns(self) -> frozenset[str]:
        """The names in the first row of a table or of JSON lines; none for any other file."""
        if self.is_dir or self.suffix not in (*JSON_LINES, *TABLES):
            return frozenset()
        try:
            with self.path.open(encoding="utf-8-sig", errors="replace") as file:
                first = file.readline(ROW_BYTES)
            if self.suffix in JSON_LINES:
                return frozenset(json.loads(first))
            return frozenset(first.rstrip("\r\n").split(TABLES[self.suffix]))
        except (OSError, ValueError, TypeError, RecursionError):
            return frozenset()


def rows_with(*choices: tuple[str, ...], sure: float, tables: bool = False) -> Reads:
    """What reads JSON lines, and with `tables` tables too, whose rows have all the columns of one of `choices`."""

    def reads(given: UserPath) -> float:
        if given.suffix not in JSON_LINES and not (tables and given.suffix in TABLES):
            return 0
        return sure * any(given.columns.issuperset(names) for names in choices)

    return reads


def source_for(path: str | Path) -> str | None:
    """The data set that was registered with the ``reads`` that is surest of `path`; None: none is."""
    given = UserPath(str(path))
    sources = [name for name, found in data.found.items() if "reads" in found.meta]
    sure = {name: data.get(name).meta["reads"](given) for name in sources}
    best = max(sure, key=lambda name: sure[name], default=None)
    return best if best is not None and sure[best] else None
