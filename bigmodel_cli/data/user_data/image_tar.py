"""Class folders in a tar, read in place: nothing is unpacked, so member names never become paths."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.image_names import is_hidden
from bigmodel_cli.core.images import image_suffixes
from bigmodel_cli.data.image.class_folders import Folder, arrange
from bigmodel_cli.data.image.listing import MAX_FILE, Item, Listing
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
    root = Folder(path.name, str(path))
    members: list[tuple[Member, Callable[[], bytes] | None]] = []
    if compressed:
        members += _read_compressed(path)
    else:
        members += [(m, None) for m in list_members(path) if _is_image(m.name, m.size)]
    for member, content in members:
        item = Item(member.name, -1, str(path), member.size, stamp, member.offset, content)
        *folders, _ = (part for part in PurePosixPath(member.name).parts if part != ".")
        place = root
        for name in folders:
            place = place.child(name)
        place.images.append(item)
    if not root.count():
        raise InputError(f"{path}: no images in it", "expected [train/]<class>/<file>")
    return arrange(str(path), root, lambda item: item)


def _is_image(name: str, size: int) -> bool:
    """Whether the member is an image and not hidden."""
    path = PurePosixPath(name)
    hidden = any(is_hidden(part) for part in path.parts if part != ".")
    return not hidden and path.suffix.lower() in image_suffixes() and size <= MAX_FILE


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
