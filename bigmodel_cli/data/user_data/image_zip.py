"""Class folders in a zip, read in place: nothing is unpacked, so member names never become paths."""

from __future__ import annotations

import functools
import struct
import zipfile
import zlib
from collections import Counter
from pathlib import Path

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.files.regular_files import open_regular, regular_stat
from bigmodel_cli.data.image.class_folders import Folder, add_member, arrange
from bigmodel_cli.data.image.listing import MAX_FILE, Item, Listing
from bigmodel_cli.data.webdataset.index import check_name

EXPECTED = "expected [train/]<class>/<file>"
HEADER = struct.Struct("<4s5H3I2H")
"""What a member begins with, before its name and more (section 4.3.7 of PKWARE's APPNOTE)."""
SIGNATURE = b"PK\3\4"
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
ENCRYPTED = 1  # the bit of a member's flags
MAX_MEMBERS = 5_000_000


def from_zip(path: Path) -> Listing:
    """``[top/][split/]<class>/<file>``.

    Raises:
        InputError: it is damaged, encrypted, or has another layout.
    """
    stat = regular_stat(path)
    stamp = (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
    root = Folder(path.name, str(path))
    for member in _members(path):
        check_name(path, member.filename)
        read = functools.partial(_read, str(path), member)
        image = Item(member.filename, -1, str(path), member.file_size, stamp, member.header_offset, read)
        add_member(root, member.filename, member.file_size, lambda image=image: image)  # type: ignore[misc]
    if not root.count():
        kinds = Counter[str]()
        for folder in root.below():
            kinds.update(folder.others)
        there = f", only {', '.join(sorted(kinds)[:5])}" if kinds else ""
        hint = f"unzip it, then --data what is in it: unzip {path}" if kinds else None
        raise InputError(f"{path}: no images in it{there}", EXPECTED, hint)
    return arrange(str(path), root, lambda item: item)


def _members(path: Path) -> list[zipfile.ZipInfo]:
    """The files in the zip."""
    try:
        with zipfile.ZipFile(path) as archive:
            found = [member for member in archive.infolist() if not member.is_dir()]
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{path}: damaged or cut off ({error})", "expected a zip of class folders") from None
    if len(found) > MAX_MEMBERS:
        raise InputError(f"{path}: {len(found)} files", f"at most {MAX_MEMBERS}", f"unzip {path}")
    if any(member.compress_type not in METHODS for member in found):
        raise InputError(f"{path}: compressed in another way than deflate", EXPECTED, f"unzip {path}")
    large = next((member for member in found if member.compress_size > MAX_FILE), None)
    if large is not None:
        raise InputError(f"{path}: {large.filename} has {large.compress_size} bytes", f"expected at most {MAX_FILE}")
    if any(member.flag_bits & ENCRYPTED for member in found):
        raise InputError(f"{path}: encrypted", EXPECTED, f"unzip {path}")
    return found


def _read(path: str, member: zipfile.ZipInfo) -> bytes:
    """The bytes of a member: no more than its entry claims, whatever it grows to.

    It is found by its own header, since opening the archive anew would read the list of all its members each time.
    """
    try:
        with open_regular(path) as file:
            file.seek(member.header_offset)
            header = file.read(HEADER.size)
            name, extra = HEADER.unpack(header)[-2:]
            file.seek(name + extra, 1)
            raw = file.read(member.compress_size)
    except (OSError, struct.error) as error:
        raise InputError(f"{path}: {member.filename}: {error}", "it was there when the run began") from None
    try:
        if member.compress_type == zipfile.ZIP_DEFLATED:
            raw = zlib.decompressobj(-zlib.MAX_WBITS).decompress(raw, member.file_size + 1)
    except zlib.error as error:
        raise InputError(f"{path}: {member.filename}: {error}", "expected a whole zip") from None
    if header[:4] != SIGNATURE or len(raw) != member.file_size or zlib.crc32(raw) != member.CRC:
        raise InputError(f"{path}: {member.filename}: damaged", "expected a whole zip")
    return raw
