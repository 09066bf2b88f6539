"""Class folders in a tar, read in place: nothing is unpacked, so member names never become paths."""

from __future__ import annotations

import functools
import tarfile
from pathlib import Path

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.files.regular_files import regular_stat
from bigmodel_cli.core.files.tar_files import ERRORS, open_tar
from bigmodel_cli.data.image.class_folders import Folder, add_member, arrange
from bigmodel_cli.data.image.listing import Item, Listing
from bigmodel_cli.data.webdataset.index import check_name, list_members

MAX_COMPRESSED = 4 * 2**30  # bytes of images in a compressed tar, all held in memory


def from_tar(path: Path) -> Listing:
    """``[top/][split/]<class>/<file>``, compressed or not.

    Raises:
        InputError: it is damaged, or has another layout.
    """
    stat = regular_stat(path)
    stamp = (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
    root = Folder(path.name, str(path))
    if path.name.lower().endswith(".tar"):
        for member in list_members(path):
            image = Item(member.name, -1, str(path), member.size, stamp, member.offset)
            add_member(root, member.name, member.size, lambda image=image: image)  # type: ignore[misc]
    else:
        _read_compressed(path, stamp, root)
    if not root.count():
        raise InputError(f"{path}: no images in it", "expected [train/]<class>/<file>")
    return arrange(str(path), root, lambda item: item)


def _read_compressed(path: Path, stamp: tuple[int, ...], root: Folder) -> None:
    """Read the images of a compressed tar into memory, since they cannot be read by offset."""
    total = 0

    def content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Item:
        nonlocal total
        total += member.size
        if total > MAX_COMPRESSED:
            raise InputError(f"{path}: over {MAX_COMPRESSED} bytes", "expected an uncompressed .tar, or a folder")
        raw: bytes = tar.extractfile(member).read()  # type: ignore[union-attr]
        return Item(member.name, -1, str(path), member.size, stamp, member.offset_data, raw.__bytes__)

    try:
        with open_tar(path, "r:*") as (tar, members):
            for member in members:
                check_name(path, member.name)
                if member.isreg():
                    add_member(root, member.name, member.size, functools.partial(content, tar, member))
    except ERRORS as error:
        raise InputError(f"{path}: damaged or cut off ({error})", "expected a tar of class folders") from None
