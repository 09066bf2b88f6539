"""Class folders in a tar, read in place: nothing is unpacked, so member names never become paths."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.images import SUFFIXES
from bigmodel_cli.data.image.listing import MAX_FILE, SPLITS, Item, Listing, build_listing, is_hidden
from bigmodel_cli.data.webdataset.index import Member, check_name, list_members

MAX_COMPRESSED = 4 * 2**30  # bytes of images in a compressed tar, all held in memory


def from_tar(path: Path) -> Listing:
    """``[top/][split/]<class>/<file>``, compressed or not.

    Raises:
        InputError: it is damaged, or has another layout.
    """
    compressed = not path.name.lower().endswith(".tar")
    stat = path.stat()
    stamp = (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
    found = []
    for member, content in (
        _read_compressed(path) if compressed else [(m, None) for m in list_members(path) if _is_image(m.name, m.size)]
    ):
        item = Item(member.name, -1, str(path), member.size, stamp, member.offset, content)
        found.append((tuple(part for part in PurePosixPath(member.name).parts if part != "."), item))
    return build_listing(str(path), _group_by_split(path, found))


def _is_image(name: str, size: int) -> bool:
    """Whether the member is an image and not hidden."""
    path = PurePosixPath(name)
    hidden = any(is_hidden(part) for part in path.parts if part != ".")
    return not hidden and path.suffix.lower() in SUFFIXES and size <= MAX_FILE


def _read_compressed(path: Path) -> list[tuple[Member, Callable[[], bytes]]]:
    """Read the images of a compressed tar into memory, since they cannot be read by offset."""
    found: list[tuple[Member, Callable[[], bytes]]] = []
    total = 0
    try:
        with tarfile.open(path, "r:*") as tar:
            for member in tar:
                check_name(path, member.name)
                if not member.isreg() or not _is_image(member.name, member.size):
                    continue
                total += member.size
                if total > MAX_COMPRESSED:
                    raise InputError(
                        f"{path}: over {MAX_COMPRESSED} bytes", "expected an uncompressed .tar, or a folder"
                    )
                content: bytes = tar.extractfile(member).read()  # type: ignore[union-attr]
                found.append((Member(member.name, member.offset_data, member.size), content.__bytes__))
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise InputError(f"{path}: damaged or cut off ({error})", "expected a tar of class folders") from None
    return found


def _group_by_split(path: Path, list_members: list[tuple[tuple[str, ...], Item]]) -> dict[str, dict[str, list[Item]]]:
    """Split -> class -> images, ignoring common top-level folders."""
    if not list_members:
        raise InputError(f"{path}: no images in it", "expected [train/]<class>/<file>")
    top = 0
    while len({parts[top] for parts, _ in list_members if len(parts) > top + 2}) == 1 and all(
        len(parts) > top + 2 for parts, _ in list_members
    ):
        top += 1
    has_splits = any(parts[top].lower() in SPLITS and len(parts) > top + 2 for parts, _ in list_members)
    found: dict[str, dict[str, list[Item]]] = {}
    for parts, item in sorted(list_members, key=lambda pair: pair[1].name):
        rest = parts[top:]
        split = SPLITS.get(rest[0].lower()) if has_splits else "train"
        rest = rest[1:] if has_splits else rest
        if split is None or len(rest) < 2:
            raise InputError(f"{path}: {item.name} is in no class folder", "expected [train/]<class>/<file>")
        found.setdefault(split, {}).setdefault(rest[0], []).append(item)
    if "train" not in found:
        raise InputError(f"{path}: {', '.join(found)} but no train/", "expected [train/]<class>/<file>")
    return found
