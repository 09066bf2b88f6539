"""Names of classes that may not be meant as they stand."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

ABSENT_WORDS = frozenset(("nan", "na", "n/a", "<na>", "#n/a", "null"))
"""Words that programs write where a value is missing; they may also be names, as of Namibia."""
LONGEST_ABSENT = 6  # characters, with blanks around


class AbsentTexts:
    """Counts the texts that are nothing but a word for a missing value."""

    def __init__(self) -> None:
        self.count, self.example = 0, ""

    def add(self, text: str) -> None:
        if len(text) <= LONGEST_ABSENT and text.strip().casefold() in ABSENT_WORDS:
            self.count, self.example = self.count + 1, self.example or text.strip()

    def notes(self) -> list[str]:
        if not self.count:
            return []
        return [f"text: {self.count:,} texts are {self.example} or alike, which often stands for a missing text"]


def doubtful_classes(classes: Iterable[str]) -> list[str]:
    """Notes on names that may not be meant as classes of their own."""
    names, notes = list(classes), list[str]()
    by_case: dict[str, list[str]] = {}
    by_value: dict[float, list[str]] = {}
    for name in names:
        by_case.setdefault(name.strip().casefold(), []).append(name)
        with contextlib.suppress(ValueError):
            by_value.setdefault(float(name), []).append(name)
    for what, groups in (("differ only in case or blanks", by_case), ("are the same number", by_value)):
        same = [" and ".join(group) for group in groups.values() if len(group) > 1]
        notes += [f"classes that {what}: {', '.join(same[:3])}"] if same else []
    absent = [name for name in names if name.casefold() in ABSENT_WORDS]
    notes += [f"{', '.join(absent)}: read as a class, though it often stands for a missing label"] if absent else []
    parts = [name for name in names if "|" in name]
    hint = "several labels a sample: --task multi_label_classification"
    return notes + ([f"classes with | in them, such as {parts[0]}; {hint}"] if parts else [])
