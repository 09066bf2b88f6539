"""The images of a data set and their classes, whatever they were found in; nothing is decoded here."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from bigmodel_cli.core.errors import InputError

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""A folder's or a table's word for a split -> the split."""
HIDDEN = ("__MACOSX", "Thumbs.db", "desktop.ini")
MAX_FILE = 256 * 2**20  # bytes of one image file
Found = Mapping[str, Mapping[str, list["Item"]]]
"""Split -> class -> its images."""


@dataclass(slots=True)
class Item:
    """One image: where its bytes lie, and what tells that they have not changed."""

    name: str
    label: int
    file: str
    size: int
    stamp: tuple[int, ...]
    offset: int | None = None
    content: Callable[[], bytes] | None = field(default=None, repr=False)

    @property
    def place(self) -> str:
        """Where a person finds it."""
        return self.file if self.offset is None else f"{self.file}:{self.name.rpartition(':')[2]}"

    def read(self) -> bytes:
        """The encoded bytes.

        Raises:
            InputError: the file has gone or cannot be read.
        """
        if self.content is not None:
            return self.content()
        try:
            with open(self.file, "rb") as file:  # noqa: PTH123 (a Path for each of a million files costs seconds)
                file.seek(self.offset or 0)
                return file.read(self.size)
        except OSError as error:
            raise InputError(f"{self.file}: {error.strerror or error}", "it was there when the run began") from None


@dataclass(frozen=True)
class Listing:
    """The images of each split, sorted by name, and what a person should know of them."""

    classes: tuple[str, ...]
    splits: Mapping[str, list[Item]]
    notes: tuple[str, ...] = ()
    version: str = ""
    """What else tells this data from other data of the same names and sizes."""

    def counts(self, split: str) -> list[int]:
        """How many images each class has in `split`."""
        result = [0] * len(self.classes)
        for item in self.splits[split]:
            result[item.label] += 1
        return result

    def fingerprint(self) -> str:
        """SHA-256 over the names and sizes of the train images: the same wherever the folder lies."""
        total = hashlib.sha256(self.version.encode())
        for item in self.splits["train"]:
            total.update(f"{item.name}:{item.size}\n".encode("utf-8", "surrogateescape"))
        return total.hexdigest()


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name in HIDDEN


def assemble(
    where: str, found: Found, notes: Sequence[str] = (), order: Sequence[str] = (), version: str = ""
) -> Listing:
    """Labels by the `order` of the classes, else by sorted name.

    The class lists of train and val must be equal, test's a part of them.

    Raises:
        InputError: they are not; or there is one class only.
    """
    classes = tuple(name for name in order or sorted(found["train"]) if name in found["train"])
    if len(classes) < 2:
        raise InputError(f"{where}: one class only ({classes[0]})", "expected at least two")
    for split in found:
        here = set(found[split])
        missing = sorted(set(classes) - here) if split != "test" else []
        extra = sorted(here - set(classes))
        if missing or extra:
            parts = [f"no {few(missing)}"] * bool(missing) + [f"{few(extra)} not in train"] * bool(extra)
            raise InputError(f"{where}: {split} has {', '.join(parts)}", "expected the classes of train")
    splits: dict[str, list[Item]] = {}
    for split, members in found.items():
        splits[split] = [item for name in classes for item in members.get(name, ())]
        for k, name in enumerate(classes):
            for item in members.get(name, ()):
                item.label = k
    return Listing(classes, splits, tuple(notes), version)


def few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
