"""The images of a data set and their classes, whatever the storage. Nothing is decoded here."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from bigmodel_cli.core.errors import InputError

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""The name of a split in a folder or a table -> the split."""
HIDDEN = ("__MACOSX", "Thumbs.db", "desktop.ini")
MAX_FILE = 256 * 2**20  # bytes of one image file
ImagesByClass = Mapping[str, Mapping[str, list["Item"]]]
"""Split -> class -> its images."""


@dataclass(slots=True)
class Item:
    """One image: where to read its bytes, and a stamp that changes with them."""

    name: str
    label: int
    file: str
    size: int
    stamp: tuple[int, ...]
    offset: int | None = None
    content: Callable[[], bytes] | None = field(default=None, repr=False)

    @property
    def location(self) -> str:
        """The location to show to the user."""
        return self.file if self.offset is None else f"{self.file}:{self.name.rpartition(':')[2]}"

    def read(self) -> bytes:
        """The encoded bytes.

        Raises:
            InputError: the file is gone or cannot be read.
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
    """The images of each split, sorted by name, and notes for the user."""

    classes: tuple[str, ...]
    splits: Mapping[str, list[Item]]
    notes: tuple[str, ...] = ()
    version: str = ""
    """Distinguishes this data from other data with the same names and sizes."""

    def counts(self, split: str) -> list[int]:
        """The number of images of each class in `split`."""
        result = [0] * len(self.classes)
        for item in self.splits[split]:
            result[item.label] += 1
        return result

    def fingerprint(self) -> str:
        """SHA-256 over the names and sizes of the train images; independent of the folder's location."""
        total = hashlib.sha256(self.version.encode())
        for item in self.splits["train"]:
            total.update(f"{item.name}:{item.size}\n".encode("utf-8", "surrogateescape"))
        return total.hexdigest()


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name in HIDDEN


def build_listing(
    where: str, found: ImagesByClass, notes: Sequence[str] = (), order: Sequence[str] = (), version: str = ""
) -> Listing:
    """Number the classes in the given `order`, or else sorted by name.

    Train and val must have the same classes; test may lack some.

    Raises:
        InputError: the classes differ, or there is only one.
    """
    classes = tuple(name for name in order or sorted(found["train"]) if name in found["train"])
    if len(classes) < 2:
        raise InputError(f"{where}: only one class ({classes[0]})", "expected at least two")
    for split in found:
        here = set(found[split])
        missing = sorted(set(classes) - here) if split != "test" else []
        extra = sorted(here - set(classes))
        if missing or extra:
            parts = [f"no {shorten(missing)}"] * bool(missing) + [f"{shorten(extra)} not in train"] * bool(extra)
            raise InputError(f"{where}: {split} has {', '.join(parts)}", "expected the classes of train")
    splits: dict[str, list[Item]] = {}
    for split, members in found.items():
        splits[split] = [item for name in classes for item in members.get(name, ())]
        for k, name in enumerate(classes):
            for item in members.get(name, ()):
                item.label = k
    return Listing(classes, splits, tuple(notes), version)


def shorten(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
