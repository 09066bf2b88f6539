"""Class folders packed in a tar, read where they lie: nothing is unpacked, names are only names."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.images import SUFFIXES
from bigmodel_cli.data.image.listing import MAX_FILE, SPLITS, Item, Listing, assemble, is_hidden
from bigmodel_cli.data.webdataset.index import Member, check_name, members

MAX_PACKED = 4 * 2**30  # bytes of images in a compressed tar, which are held in memory


def from_tar(path: Path) -> Listing:
    """``[top/][split/]<class>/<file>``, compressed or not.

    Raises:
        InputError: it is damaged, or holds something else.
    """
    packed = not path.name.lower().endswith(".tar")
    stat = path.stat()
    stamp = (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
    found = []
    for member, content in _packed(path) if packed else [(m, None) for m in members(path) if _wanted(m.name, m.size)]:
        item = Item(member.name, -1, str(path), member.size, stamp, member.offset, content)
        found.append((tuple(part for part in PurePosixPath(member.name).parts if part != "."), item))
    return assemble(str(path), _tar_splits(path, found))


def _wanted(name: str, size: int) -> bool:
    """Whether the member of that name is an image that is not hidden."""
    path = PurePosixPath(name)
    hidden = any(is_hidden(part) for part in path.parts if part != ".")
    return not hidden and path.suffix.lower() in SUFFIXES and size <= MAX_FILE


def _packed(path: Path) -> list[tuple[Member, Callable[[], bytes]]]:
    """The images of a compressed tar, which are held in memory: there is no offset to read them at."""
    found: list[tuple[Member, Callable[[], bytes]]] = []
    total = 0
    try:
        with tarfile.open(path, "r:*") as tar:
            for member in tar:
                check_name(path, member.name)
                if not member.isreg() or not _wanted(member.name, member.size):
                    continue
                total += member.size
                if total > MAX_PACKED:
                    raise InputError(f"{path}: over {MAX_PACKED} bytes", "expected an uncompressed .tar, or a folder")
                content: bytes = tar.extractfile(member).read()  # type: ignore[union-attr]
                found.append((Member(member.name, member.offset_data, member.size), content.__bytes__))
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise InputError(f"{path}: damaged or cut off ({error})", "expected a tar of class folders") from None
    return found


def _tar_splits(path: Path, members: list[tuple[tuple[str, ...], Item]]) -> dict[str, dict[str, list[Item]]]:
    """Split -> class -> images. Folders that hold everything are skipped."""
    if not members:
        raise InputError(f"{path}: no images in it", "expected [train/]<class>/<file>")
    top = 0
    while len({parts[top] for parts, _ in members if len(parts) > top + 2}) == 1 and all(
        len(parts) > top + 2 for parts, _ in members
    ):
        top += 1
    has_splits = any(parts[top].lower() in SPLITS and len(parts) > top + 2 for parts, _ in members)
    found: dict[str, dict[str, list[Item]]] = {}
    for parts, item in sorted(members, key=lambda pair: pair[1].name):
        rest = parts[top:]
        split = SPLITS.get(rest[0].lower()) if has_splits else "train"
        rest = rest[1:] if has_splits else rest
        if split is None or len(rest) < 2:
            raise InputError(f"{path}: {item.name} is in no class folder", "expected [train/]<class>/<file>")
        found.setdefault(split, {}).setdefault(rest[0], []).append(item)
    if "train" not in found:
        raise InputError(f"{path}: {', '.join(found)} but no train/", "expected [train/]<class>/<file>")
    return found
