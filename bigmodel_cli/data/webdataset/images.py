"""WebDataset shards of images, read by index: an image (``.jpg``, ...) with a ``.cls`` or ``.json`` label."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from bigmodel_cli.core.errors import InputError, shorten
from bigmodel_cli.core.files.regular_files import open_regular, regular_stat
from bigmodel_cli.core.image.images import image_suffixes
from bigmodel_cli.core.readers.text_files import read_text
from bigmodel_cli.core.registry import natural
from bigmodel_cli.core.splits import WORDS as SPLITS
from bigmodel_cli.data.image.listing import MAX_FILE, Item, Listing, build_listing
from bigmodel_cli.data.webdataset.index import Member, group_samples, list_members

LABELS = ("cls", "json")
FIELDS = ("label", "cls", "class", "class_name", "label_name")
"""JSON fields that may hold the class, unless ``data.label_column`` names another."""
NAMES = "classes.txt"
MAX_NAMES = 2**24  # bytes of the names of classes
MAX_LABEL = 2**20  # bytes of a .cls or .json
EXPECTED = "expected .jpg, .png, ... with a .cls or .json of the same name"


def is_shard(path: Path) -> bool:
    """Whether the first samples of the tar at `path` are images with labels, rather than class folders."""
    return any(
        _image(parts) and any(kind in parts for kind in LABELS) for _, parts in group_samples(list_members(path))[:100]
    )


def from_shards(where: str, paths: Sequence[Path], label: str | None = None, group_by: str | None = None) -> Listing:
    """The images in the shards at `paths`.

    A shard's split is in its name (``val-000.tar``) or its folder's; the default is train. Classes are the
    content of ``.cls``, or the field `label` of ``.json``. If they are numbers, ``classes.txt`` beside the shards may
    name them, one per line, from 0. `group_by` is the field of ``.json`` that samples of one group have in common.

    Raises:
        InputError: a shard is damaged, or a sample has no image or no label.
    """
    found: dict[str, dict[str, list[Item]]] = {}
    for path in paths:
        classes = found.setdefault(split_of(path), {})
        for item, name in shard_items(path, label, group_by):
            classes.setdefault(name, []).append(item)
    order = sorted({name for classes in found.values() for name in classes}, key=natural)
    names = paths[0].with_name(NAMES)
    if names.is_file() and all(name.isdigit() for name in order):
        named = [line.strip() for line in read_text(names, most=MAX_NAMES).splitlines() if line.strip()]
        beyond = [name for name in order if int(name) >= len(named)]
        if beyond:
            raise InputError(f"{names}: {len(named)} names", f"the shards have class {shorten(beyond)}")
        found = {s: {named[int(k)]: items for k, items in classes.items()} for s, classes in found.items()}
        order = named
    return build_listing(where, found, order=order)


def split_of(path: Path) -> str:
    words = [*re.split(r"[^a-z]+", path.stem.lower()), path.parent.name.lower()]
    return next((SPLITS[word] for word in words if word in SPLITS), "train")


def _image(parts: dict[str, Member]) -> Member | None:
    return next((parts[kind] for kind in parts if f".{kind.rpartition('.')[2]}" in image_suffixes()), None)


def shard_items(path: Path, field: str | None, group_by: str | None = None) -> list[tuple[Item, str]]:
    """The images in the shard at `path`, each with its class.

    Raises:
        InputError: the shard is damaged, or a sample has no image or no label.
    """
    stat = regular_stat(path)
    stamp = (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
    found = []
    with open_regular(path) as file:
        for key, parts in group_samples(list_members(path)):
            image, kind = _image(parts), next((kind for kind in LABELS if kind in parts), None)
            if image is None and kind is None:
                continue  # an unrelated file
            if image is None or kind is None or image.size > MAX_FILE:
                what = "no image" if image is None else "no .cls or .json" if kind is None else "too large"
                raise InputError(f"{path}: {key} has {', '.join(parts)}: {what}", EXPECTED)
            member = parts[kind]
            file.seek(member.offset)
            raw = file.read(min(member.size, MAX_LABEL + 1))
            item = Item(f"{path.name}:{image.name}", -1, str(path), image.size, stamp, image.offset)
            if group_by is not None:
                item.group = _group(raw if kind == "json" else b"", group_by, f"{path}: {member.name}")
            found.append((item, _label(raw, kind, field, f"{path}: {member.name}")))
    if not found:
        raise InputError(f"{path}: no samples in it", EXPECTED)
    return found


def _group(raw: bytes, field: str, name: str) -> str:
    try:
        value = json.loads(raw)[field]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise InputError(f"{name}: no {field} in it", "expected JSON with the field that --group-by names") from None
    return f"group {value}"


def _label(raw: bytes, kind: str, field: str | None, name: str) -> str:
    try:
        if kind == "cls":
            value: object = raw[:MAX_LABEL].decode("utf-8").strip()
        else:
            about = json.loads(raw)
            known = [field] if field is not None else [f for f in FIELDS if f in about]
            value = about[known[0]]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise InputError(
            f"{name}: no class in it", f"expected text, or JSON with {field or ', '.join(FIELDS)}"
        ) from None
    if not isinstance(value, str | int) or isinstance(value, bool) or not str(value):
        raise InputError(f"{name}: the class is {value!r}"[:150], "expected a name or a number")
    return str(value)
