"""``--data PATH``: selects the registered data set that reads a given path."""

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
ROW_BYTES = 1 << 24  # maximum bytes to read of the first row

Reads = Callable[["UserPath"], float]
"""Scores how well a data set fits a path: 0 if it cannot read it; the highest wins. Above 1, content was checked."""


@dataclass(frozen=True)
class UserPath:
    """The value of ``--data``: a path, an address, or a pattern of paths."""

    text: str

    @functools.cached_property
    def path(self) -> Path:
        return Path(self.text).expanduser()

    @property
    def suffix(self) -> str:
        return self.path.suffix.lower()

    @property
    def is_address(self) -> bool:
        """Whether it begins with a scheme, such as ``https:`` or ``hf:``."""
        return re.match(r"[a-z]+:", self.text) is not None

    @property
    def is_pattern(self) -> bool:
        """Whether it is a pattern of several tar files, such as ``train-{000..099}.tar``."""
        return self.text.endswith(".tar") and any(sign in self.text for sign in "{*")

    @functools.cached_property
    def is_dir(self) -> bool:
        return self.path.is_dir()

    @functools.cached_property
    def columns(self) -> frozenset[str]:
        """The column names of a table, or the keys of the first JSON line; empty for any other file."""
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


def rows_with(*choices: tuple[str, ...], score: float, tables: bool = False) -> Reads:
    """Fits JSON lines (and, with `tables`, tables) that have all the columns of one of `choices`."""

    def reads(given: UserPath) -> float:
        if given.suffix not in JSON_LINES and not (tables and given.suffix in TABLES):
            return 0
        return score * any(given.columns.issuperset(names) for names in choices)

    return reads


def source_for(path: str | Path) -> str | None:
    """The data set whose registered ``reads`` gives `path` the highest score; None if no data set reads it."""
    given = UserPath(str(path))
    sources = [name for name, found in data.found.items() if "reads" in found.meta]
    scores = {name: data.get(name).meta["reads"](given) for name in sources}
    best = max(scores, key=lambda name: scores[name], default=None)
    return best if best is not None and scores[best] else None
