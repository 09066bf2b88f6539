"""Names of splits, as folders, files and columns spell them, and the hash that carves val out of train."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

WORDS = {
    "train": "train", "training": "train", "trn": "train", "trainval": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val", "develop": "val", "development": "val",
    "test": "test", "testing": "test", "tst": "test", "eval": "test", "evaluation": "test", "holdout": "test",
}  # fmt: skip
"""A word in the name of a split -> the split."""
FILLERS = frozenset(("set", "split", "data", "dataset", "images", "image", "imgs", "img", "photos", "files"))
"""Words that say nothing about a split."""
JOINED = re.compile(r"^(train|training|val|valid|validation|dev|test|testing)(?:(?:set|data|images|imgs)|(\d+))$")
UNLABELLED = frozenset(("unsup", "unsupervised", "unlabeled", "unlabelled"))
"""Folders of samples that have no class, beside those of the classes."""


def split_of(name: str) -> str | None:
    """The split that `name` is a usual name of, such as ``Training`` or ``valid_set``; None if it is not one."""
    split, rest = _parts(name)
    return split if not rest else None


def splits_among(names: Iterable[str]) -> dict[str, str]:
    """Name -> split, for those of the sibling `names` that are splits.

    Besides the usual names, several names that differ only in the word for their split are splits: ``seg_train`` and
    ``seg_test``, or ``flowers-train`` and ``flowers-valid``; also with a number beside another split, as ``test1``.
    """
    found: dict[str, str] = {}
    by_rest: dict[tuple[str, ...], dict[str, str]] = {}
    for name in names:
        split, rest = _parts(name)
        if split and not rest:
            found[name] = split
        elif split:
            by_rest.setdefault(rest, {})[name] = split
    for group in by_rest.values():
        if len(set(group.values())) > 1:
            found |= group
    for rest, group in by_rest.items():
        if all(word.isdigit() for word in rest):
            found |= {name: split for name, split in group.items() if set(found.values()) - {split}}
    return found


def _parts(name: str) -> tuple[str | None, tuple[str, ...]]:
    """The split that a word of `name` means, if exactly one word does, and the other words."""
    words = list(_words(name))
    splits = [word for word in words if word in WORDS]
    if len(splits) != 1:
        return None, tuple(words)
    return WORDS[splits[0]], tuple(word for word in words if word not in WORDS and word not in FILLERS)


def _words(name: str) -> Iterator[str]:
    """The words of `name`; ``trainset`` is ``train``, and ``test1`` is ``test`` and ``1``."""
    for word in re.split(r"[^0-9a-z]+", name.casefold()):
        match = JOINED.match(word)
        yield from (part for part in (match.groups() if match else (word,)) if part)


def check_one_folder_each(where: object, named: Mapping[str, str]) -> tuple[str, str] | None:
    """The first two of the names in `named` (name -> split) that mean one split; None if each means its own."""
    seen: dict[str, str] = {}
    for name, split in named.items():
        if split in seen:
            return seen[split], name
        seen[split] = name
    return None


def name_hash(name: str | bytes) -> int:
    """A 63-bit hash of the name of a sample or of a group, the same on every machine."""
    raw = name.encode("utf-8", "surrogatepass") if isinstance(name, str) else name
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little") >> 1


def name_hashes(names: Sequence[str]) -> list[int]:
    return [name_hash(name) for name in names]
