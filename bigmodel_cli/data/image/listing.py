"""The images of a data set and their classes, whatever the storage. Nothing is decoded here."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from bigmodel_cli.core.errors import InputError, shorten
from bigmodel_cli.core.files.regular_files import open_regular, regular_stat

NO_TRAIN = "expected PATH/train/<class>/ and PATH/val/<class>/, or PATH/<class>/"
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
    group: str = ""
    """What must stay on one side of a split with this image; else its name counts."""

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
            with open_regular(self.file) as file:
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
    problem: InputError | None = None
    """Why it cannot be trained on."""

    @property
    def first_split(self) -> str:
        """Train, if there is one."""
        return "train" if "train" in self.splits else min(self.splits)

    def check_trainable(self) -> Listing:
        """The listing itself.

        Raises:
            InputError: it cannot be trained on.
        """
        if self.problem is not None:
            raise self.problem
        return self

    def counts(self, split: str) -> list[int]:
        """The number of images of each class in `split`."""
        result = [0] * len(self.classes)
        for item in self.splits[split]:
            result[item.label] += 1
        return result

    def fingerprint(self) -> str:
        """SHA-256 over the names and sizes of the train images; independent of the folder's location."""
        total = hashlib.sha256(self.version.encode())
        for item in self.splits[self.first_split]:
            total.update(f"{item.name}:{item.size}\n".encode("utf-8", "surrogateescape"))
        return total.hexdigest()


def file_item(file: str, name: str) -> Item:
    """The image in `file`, called `name`.

    Raises:
        InputError: it is gone, no regular file, or too large.
    """
    stat = regular_stat(file)
    if stat.st_size > MAX_FILE:
        raise InputError(f"{file}: {stat.st_size} bytes", f"expected an image of at most {MAX_FILE}")
    return Item(name, -1, file, stat.st_size, (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino))


def build_listing(
    where: str, found: ImagesByClass, notes: Sequence[str] = (), order: Sequence[str] = (), version: str = ""
) -> Listing:
    """Number the classes in the given `order`, or else sorted by name.

    For training, train and val must have the same classes, and at least two; test may lack some. What is wrong for
    training is the listing's `problem`, since it may still be evaluated.
    """
    every = {name for classes in found.values() for name in classes}
    classes = tuple(name for name in order or sorted(every) if name in every)
    splits: dict[str, list[Item]] = {}
    for split, members in found.items():
        splits[split] = [item for name in classes for item in members.get(name, ())]
        for k, name in enumerate(classes):
            for item in members.get(name, ()):
                item.label = k
    return Listing(classes, splits, tuple(notes), version, _problem(where, found))


def _problem(where: str, found: ImagesByClass) -> InputError | None:
    """Why the images in `found` cannot be trained on, or None."""
    if "train" not in found:
        return InputError(f"{where}: {', '.join(f'{split}/' for split in found)} but no train/", NO_TRAIN)
    classes = set(found["train"])
    for split in found:
        here = set(found[split])
        missing = sorted(classes - here) if split != "test" else []
        extra = sorted(here - classes)
        if missing or extra:
            parts = [f"no {shorten(missing)}"] * bool(missing) + [f"{shorten(extra)} not in train"] * bool(extra)
            return InputError(f"{where}: {split} has {', '.join(parts)}", "expected the classes of train")
    if len(classes) < 2:
        return InputError(f"{where}: only one class ({next(iter(classes))})", "expected at least two")
    return None
