"""Index tar shards, so that samples can be read by offset without unpacking.

The index of a shard is built once and cached; a changed shard is indexed again. Samples are
WebDataset's (Aizman et al. 2019): the files of a shard whose paths are equal up to the first
dot of the name.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from bigmodel_cli.core.errors import InputError, MachineError
from bigmodel_cli.core.files.atomic_files import write_text
from bigmodel_cli.core.files.regular_files import regular_stat
from bigmodel_cli.core.files.tar_files import ERRORS, open_tar
from bigmodel_cli.core.recipe import cache_root

VERSION = 1
MAX_SHARDS = 100_000
BRACES = re.compile(r"\{([^{}]*)\}")


class Member(NamedTuple):
    """A file in a tar: `size` bytes at `offset`."""

    name: str
    offset: int
    size: int


def is_pattern(text: str) -> bool:
    """Whether `text` is a pattern of shards, like ``part-{000..003}.tar`` or ``{train,val}-*.tar``."""
    return text.endswith(".tar") and any(sign in text for sign in "{*")


def expand_pattern(pattern: str) -> list[Path]:
    """The shards that match `pattern`: ``{000..003}`` is a range, ``{a,b}`` a choice, ``*`` a wildcard.

    Raises:
        InputError: one of them does not exist, or there are more than MAX_SHARDS.
    """
    names = _expand_braces(str(Path(pattern).expanduser().absolute()))
    found: list[Path] = []
    for name in names:
        there = sorted(Path(name).parent.glob(Path(name).name)) if "*" in name else [Path(name)]
        missing = not there or not there[0].is_file()
        if missing:
            raise InputError(f"{name}: no such shard", f"one of {len(names)} that {pattern} names")
        found += there
    return found


def _expand_braces(text: str) -> list[str]:
    match = BRACES.search(text)
    if match is None:
        return [text]
    before, inside, after = text[: match.start()], match[1], text[match.end() :]
    count = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if count is None:
        choices = inside.split(",")
    else:
        low, high = int(count[1]), int(count[2])
        if not 0 <= high - low < MAX_SHARDS:
            raise InputError(f"{{{inside}}}", f"expected {{low..high}} with at most {MAX_SHARDS} numbers")
        choices = [str(n).zfill(len(count[1])) for n in range(low, high + 1)]
    result = [before + choice + rest for choice in choices for rest in _expand_braces(after)]
    if len(result) > MAX_SHARDS:
        raise InputError(f"{text}: {len(result)} shards", f"expected at most {MAX_SHARDS}")
    return result


def list_members(path: Path) -> list[Member]:
    """The regular files in the uncompressed tar at `path`, in order; cached.

    Raises:
        InputError: it is not a tar, is damaged or compressed, or has names that lead out of it.
    """
    stat = regular_stat(path)
    made_from = (VERSION, str(path.absolute()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    place = cache_root() / "shards" / f"{hashlib.sha256(repr(made_from).encode()).hexdigest()[:40]}.json"
    found = _read_cached(place, stat.st_size)
    if found is None:
        found = _read(path)
        _write_cached(place, found)
    return found


def _read(path: Path) -> list[Member]:
    found = []
    try:
        with open_tar(path, "r:") as (_, members):
            for member in members:
                check_name(path, member.name)
                if member.isreg() and not member.issparse():
                    found.append(Member(member.name, member.offset_data, member.size))
            if found and found[-1].offset + found[-1].size > path.stat().st_size:
                raise tarfile.ReadError("it ends within a file")
    except ERRORS as error:
        raise InputError(f"{path}: damaged or cut off ({error})", "expected an uncompressed tar") from None
    return found


def check_name(path: Path, name: str) -> None:
    """Refuse a member of the tar at `path` whose name leads out of it.

    Raises:
        InputError: it does.
    """
    parts = PurePosixPath(name).parts
    if parts[:1] == ("/",) or ".." in parts:
        raise InputError(f"{path}: a member called {name}", "expected names inside the archive")


def _read_cached(place: Path, size: int) -> list[Member] | None:
    """The cached index at `place`; None if it is missing, or does not fit a file of `size` bytes."""
    try:
        found = [Member(str(name), int(offset), int(length)) for name, offset, length in json.loads(place.read_bytes())]
    except (OSError, ValueError, TypeError):
        return None
    return found if all(0 <= m.offset <= m.offset + m.size <= size for m in found) else None


def _write_cached(place: Path, found: Sequence[Member]) -> None:
    with contextlib.suppress(OSError, MachineError):  # an unwritable cache is no reason to stop
        place.parent.mkdir(parents=True, exist_ok=True)
        write_text(place, json.dumps(found))


def group_samples(found: Sequence[Member]) -> list[tuple[str, dict[str, Member]]]:
    """(key, extension -> member) in the order of the shard: ``a/b.left.jpg`` is ``left.jpg`` of the sample ``a/b``.

    Extensions are lower-case. Hidden files are skipped.

    Raises:
        InputError: a sample has two files of one extension.
    """
    result: dict[str, dict[str, Member]] = {}
    for member in found:
        folder, slash, name = member.name.rpartition("/")
        stem, dot, extension = name.partition(".")
        if not dot or not stem:
            continue
        parts = result.setdefault(f"{folder}{slash}{stem}", {})
        if extension.lower() in parts:
            raise InputError(f"{member.name} is twice in its shard", "expected each file of a sample once")
        parts[extension.lower()] = member
    return list(result.items())
