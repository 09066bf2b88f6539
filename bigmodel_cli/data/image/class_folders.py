"""Folders of images, on disk or in an archive, as splits and classes. What a layout leaves open is refused or noted."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from bigmodel_cli.core.class_names import doubtful_classes
from bigmodel_cli.core.counted import counted
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.image.image_names import is_hidden
from bigmodel_cli.core.image.images import describe_unused, image_suffixes
from bigmodel_cli.core.readers.tables import AROUND
from bigmodel_cli.core.splits import FILLERS, UNLABELLED, check_one_folder_each, split_of, splits_among
from bigmodel_cli.data.image.listing import MAX_FILE, NO_TRAIN, Item, Listing, build_listing
from bigmodel_cli.data.image.masks import without_masks

HIDDEN = "hidden"


@dataclass
class Folder:
    """A folder: its images, its folders, and how many files in it are no images, by suffix."""

    name: str
    path: str
    children: dict[str, Folder] = field(default_factory=dict)
    images: list[Any] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)

    def child(self, name: str) -> Folder:
        if name not in self.children:
            self.children[name] = Folder(name, f"{self.path}/{name}")
        return self.children[name]

    def below(self) -> Iterator[Folder]:
        """This folder and every one in it."""
        yield self
        for child in self.children.values():
            yield from child.below()

    def count(self) -> int:
        """The number of images at any depth."""
        return sum(len(folder.images) for folder in self.below())

    @property
    def full(self) -> dict[str, Folder]:
        """The folders in it that have images at any depth, by name."""
        return {name: self.children[name] for name in sorted(self.children) if self.children[name].count()}


def add_member(root: Folder, name: str, size: int, image: Callable[[], Any]) -> None:
    """Add a file of an archive to `root`: `image` makes what an image of `size` bytes is; others are counted."""
    if "/" not in name:  # written by a program of Windows
        name = name.replace("\\", "/")
    parts = [part for part in PurePosixPath(name).parts if part != "."]
    if not parts or any(map(is_hidden, parts)):
        root.others[HIDDEN] += 1
        return
    place, suffix = root, PurePosixPath(parts[-1]).suffix.lower()
    for folder in parts[:-1]:
        place = place.child(folder)
    if suffix not in image_suffixes():
        place.others[suffix or "no suffix"] += 1
    elif size > MAX_FILE:
        raise InputError(f"{root.path}: {name} has {size} bytes", f"expected an image of at most {MAX_FILE}")
    else:
        place.images.append(image())


def arrange(where: str, root: Folder, item: Callable[[Any], Item], kind: str = "images") -> Listing:
    """The images below `root` by split and class: ``[split/]<class>/...``, or ``<class>/<split>/...``.

    Folders that hold nothing but one folder, as archives often have, are passed through. `item` makes an image's item;
    `kind` is what messages call them.

    Raises:
        InputError: images lie where no class is, or folders can mean several things.
    """
    notes: list[str] = []
    root = _unwrapped(root, notes)
    splits = _splits(where, root, notes, kind)
    found: dict[str, dict[str, list[Item]]] = {}
    used: list[Folder] = []
    masks: list[tuple[str, str]] = []
    for split, folders in splits.items():
        classes = found.setdefault(split, {})
        for name, folder in sorted(folders.items()):
            label = class_name(name, notes)
            if label in classes:
                notes.append(f"{split}: several folders are called {label} once their names are made plain: one class")
            items, pairs = without_masks([item(image) for part in folder.below() for image in part.images])
            masks += pairs
            classes.setdefault(label, []).extend(items)
            used.append(folder)
    for classes in found.values():
        for items in classes.values():
            items.sort(key=lambda one: one.name)
    notes += [f"folders: {note}" for note in doubtful_classes(sorted({n for names in found.values() for n in names}))]
    notes += [f"{counted(len(masks), 'image')} not used: masks, as {min(masks)[0]} of {min(masks)[1]}"] if masks else []
    others: Counter[str] = Counter()
    for folder in root.below():
        others.update(folder.others)
    hidden = others.pop(HIDDEN, 0)
    notes += [describe_unused(others)] if others else []
    notes += [f"{hidden:,} hidden files not used"] if hidden else []
    return build_listing(where, found, notes)


def _unwrapped(root: Folder, notes: list[str]) -> Folder:
    """The folder in which the splits or classes are."""
    top = root
    while not root.images and len(root.full) == 1:
        ((name, only),) = root.full.items()
        if not only.full or split_of(name):
            break
        root = only
    if root is not top:
        notes.append(f"read from the folder {root.path[len(top.path) + 1 :]}/")
    return root


def _splits(where: str, root: Folder, notes: list[str], kind: str) -> dict[str, dict[str, Folder]]:
    """Split -> class folders by name."""
    named = splits_among(root.full)
    flat = [name for name in named if not root.full[name].full]
    if named and len(flat) == len(named) and (len(root.full) > len(named)):
        notes.append(f"{', '.join(f'{name}/' for name in flat)}: read as a class, since it holds {kind} and no classes")
        named = {}
    if not named:
        classes = _classes(root, notes, kind)
        inner = _splits_within(classes)
        if inner:
            notes.append(f"splits are the folders within the classes: {', '.join(sorted(inner))}")
            return inner
        notes += _alike(classes)
        return {"train": classes}
    if both := check_one_folder_each(where, {n: s for n, s in named.items() if n not in flat}):
        raise InputError(f"{where}: both {both[0]}/ and {both[1]}/", f"expected one {named[both[0]]} folder")
    found: dict[str, dict[str, Folder]] = {}
    for name, split in named.items():
        folder = root.full[name]
        if name in flat and split == "test":
            notes.append(f"{name}/: {len(folder.images):,} {kind} not used: in no class folder, so without labels")
            continue
        found[split] = _classes(_same_folder(folder), notes, kind)
    rest = [f"{n}/ ({root.children[n].count():,} {kind})" for n in sorted(root.children) if n not in named]
    notes += [f"not used: {', '.join(rest[:5])}{', ...' if len(rest) > 5 else ''} beside the splits"] if rest else []
    notes += [f"{len(root.images):,} {kind} not used: beside the splits"] if root.images else []
    return found


def _alike(classes: dict[str, Folder]) -> list[str]:
    """A note where the folders in each class are the same, so that they may be the classes."""
    inside = [set(folder.full) for folder in classes.values()]
    deep = [f"{name}/{child}/" for name, folder in sorted(classes.items()) for child in folder.full]
    if sum(len(names) > 1 for names in inside) > 1 and any(names != inside[0] for names in inside):
        shown = ", ".join(deep[:3]) + (", ..." if len(deep) > 3 else "")
        return [f"folders within the classes are no classes of their own: {shown}"]
    if len(inside) < 2 or len(inside[0]) < 2 or any(names != inside[0] for names in inside):
        return []
    outer, inner = (", ".join(f"{name}/" for name in sorted(names)[:3]) for names in (classes, inside[0]))
    return [f"the classes are the outer folders, {outer}, not {inner} in each of them; a table can say otherwise"]


def _same_folder(folder: Folder) -> Folder:
    """`folder`, or the one in it that is only there because an archive was unpacked: ``seg_train/seg_train/``."""
    while not folder.images and len(folder.full) == 1:
        ((name, only),) = folder.full.items()
        same = name.casefold() == folder.name.casefold() or split_of(name) or name.casefold() in FILLERS
        if not only.full or not same:
            break
        folder = only
    return folder


def _classes(folder: Folder, notes: list[str], kind: str) -> dict[str, Folder]:
    """The class folders in `folder`.

    Raises:
        InputError: there are none, one is empty, or images lie beside them.
    """
    loose = len(folder.images)
    if not folder.children:
        what = f"{loose} {kind} directly in it and no class folders" if loose else "no class folders in it"
        hint = f"put each into a folder of its class, or list them in a table: {kind[:-1]},label" if loose else None
        raise InputError(f"{folder.path}: {what}", NO_TRAIN, hint)
    if loose and kind == "texts":  # lists and licences are texts too
        notes.append(f"{counted(loose, 'text')} not used: beside the class folders")
    elif loose:
        raise InputError(f"{folder.path}: {loose} {kind} beside the class folders", "move each into its class folder")
    bare = [name for name in folder.children if name.casefold() in UNLABELLED and len(folder.children) > 2]
    if bare:
        names = ", ".join(f"{name}/ ({folder.children[name].count():,})" for name in bare)
        notes.append(f"not used, since its samples have no label: {names}")
    classes = {name: child for name, child in folder.children.items() if name not in bare}
    for child in classes.values():
        if not child.count():
            others = Counter[str]()
            for part in child.below():
                others.update(part.others)
            others.pop(HIDDEN, None)
            there = f" (only {others.total()} other files: {_suffixes(others)})" if others else ""
            hint = f"remove it, or put its {kind} there"
            raise InputError(f"{child.path}: an empty class: no {kind} in it{there}", hint)
    return classes


def _suffixes(others: Counter[str]) -> str:
    return ", ".join(f"{suffix} {n:,}" for suffix, n in others.most_common(3))


def _splits_within(classes: dict[str, Folder]) -> dict[str, dict[str, Folder]]:
    """Split -> class folders, where every class has nothing but folders for splits; empty otherwise."""
    found: dict[str, dict[str, Folder]] = {}
    for name, folder in classes.items():
        if folder.images or not folder.full:
            return {}
        for inside, part in folder.full.items():
            split = split_of(inside)
            if split is None or name in found.get(split, {}):
                return {}
            found.setdefault(split, {})[name] = part
    return found


def class_name(name: str, notes: list[str]) -> str:
    """The class that a folder's `name` means: characters composed (NFC), no blanks around; any bytes become text."""
    try:
        name.encode()
    except UnicodeEncodeError:
        name = name.encode("utf-8", "surrogateescape").decode("latin-1")
        notes.append(f"the name of the class {name!r} is not UTF-8: read as Latin-1")
    plain = AROUND.sub("", unicodedata.normalize("NFC", name))
    if plain and plain != unicodedata.normalize("NFC", name):
        notes.append(f"the folder {name!r} is read as the class {plain!r}: blanks around a name are removed")
    return plain or name
