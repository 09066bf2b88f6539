"""An on-disk cache of decoded images: decode once, in parallel, and read plain bytes in every later epoch and run.

A file holds the pixels of one split of one data set, one image after the other, then a
checksum per image. Its name is a hash of its sources, so a changed image is never served
from an old file. It is written under a temporary name and renamed when complete; if two
runs fill it at once, they write the same bytes, and one of them wins. Each image's checksum
is verified on first read in a run, and a damaged image is decoded again. The folder's size
is bounded: the least recently used files are removed first.

Pixels are read with ``preadv`` into the batch, not memory-mapped: mapped pages would count
as the process's memory, and the kernel caches the file either way.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy
import torch
from torch import Tensor

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.files.atomic_files import TEMPORARY, open_own, remove_temporary_files, temporary_name
from bigmodel_cli.core.files.file_lock import try_lock
from bigmodel_cli.core.files.offset_files import open_bytes, read_into, write_at
from bigmodel_cli.core.files.owners import Owner
from bigmodel_cli.core.files.regular_files import open_regular
from bigmodel_cli.data.thread_map import for_each, report_progress

VERSION = 1
LIMIT_GB = 32.0
CLOCK_TICK = 0.02  # seconds; the assumed resolution of file timestamps
STALE_SECONDS = 24 * 3600.0  # after which a temporary file is considered abandoned
PER_IMAGE, DIGEST = 5, 32  # bytes after the pixels: a CRC-32 and a flag per image, and a SHA-256 of those
MIN_FREE = 2**30  # bytes of disk to leave free


def cache_folder() -> Path:
    """The folder of images in BIGMODEL_CACHE, or else in ~/.cache/bigmodel."""
    return Path(os.environ.get("BIGMODEL_CACHE") or "~/.cache/bigmodel").expanduser() / "images"


def limit_bytes() -> int:
    """The maximum size of the cache: BIGMODEL_CACHE_GB, or else LIMIT_GB.

    Raises:
        InputError: BIGMODEL_CACHE_GB is not a number.
    """
    text = os.environ.get("BIGMODEL_CACHE_GB", str(LIMIT_GB))
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise InputError(f"BIGMODEL_CACHE_GB={text}", "expected a size in GB, 0 for no cache")
    return int(value * 1e9)


class CachedImages:
    """N images of one shape in a file; see :func:`open_or_fill`. `sums` (N,) int64 are CRC-32s of their pixels."""

    def __init__(self, path: Path, shape: tuple[int, ...], good: Tensor, sums: Tensor, decode: Decode) -> None:
        self.path, self.shape, self.good, self.sums, self._decode = path, shape, good, sums, decode
        self._size = math.prod(shape)
        self._file = open_bytes(path)
        self._checked = torch.zeros(len(good), dtype=torch.bool)

    def read(self, indices: Sequence[int]) -> Tensor:
        """(B, *shape) uint8.

        Raises:
            InputError: one is damaged, and its source image can no longer be read.
        """
        out = torch.empty((len(indices), *self.shape), dtype=torch.uint8)
        rows = out.view(-1).numpy().data
        for place, index in enumerate(indices):
            row = rows[place * self._size : (place + 1) * self._size]
            whole = read_into(self._file, row, index * self._size) == self._size
            if not self._checked[index]:
                if not whole or zlib.crc32(row) != int(self.sums[index]):
                    out[place] = self._repair(index)
                self._checked[index] = True
        return out

    def _repair(self, index: int) -> Tensor:
        pixels = self._decode(index)
        with contextlib.suppress(OSError):  # an unwritable cache is no reason to stop
            file = open_bytes(self.path, os.O_WRONLY)
            try:
                write_at(file, pixels.contiguous().view(-1).numpy().data, index * self._size)
            finally:
                os.close(file)
        return pixels

    def __del__(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            os.close(self._file)


Decode = Callable[[int], Tensor]
"""index -> (C,H,W) uint8. Called from several threads. Raises InputError if the image cannot be decoded."""


def open_cached(made_from: Sequence[object], shape: tuple[int, ...], decode: Decode) -> CachedImages | None:
    """Open the cache file of :func:`open_or_fill`, whatever its image count; None if it is missing or incomplete."""
    return _open(_cache_path(made_from, shape), shape, decode)


def open_or_fill(
    what: str, made_from: Sequence[object], count: int, shape: tuple[int, ...], decode: Decode, skip_bad: bool = False
) -> CachedImages | None:
    """Open the cached images 0 to `count` - 1, decoding them first if needed; None if the cache has no room.

    Args:
        what: a description for the progress bar.
        made_from: the cache key: everything that determines the pixels and `count`.
        count: the number of images N.
        shape: (C,H,W) of every image.
        decode: decodes one image.
        skip_bad: mark undecodable images as False in ``good`` instead of raising.
    """
    found = open_cached(made_from, shape, decode)
    if found is not None and len(found.good) == count and (skip_bad or bool(found.good.all())):
        return found
    path = _cache_path(made_from, shape)
    if not _make_room(path.parent, count * (math.prod(shape) + PER_IMAGE) + DIGEST):
        return None
    try:
        with _exclusive(path, what, count):
            if _open(path, shape, decode) is None or found is not None:  # no other process has filled it meanwhile
                _fill(path, what, count, shape, decode, skip_bad)
    except OSError:  # the disk is full or not writable
        return None
    return _open(path, shape, decode)


@contextlib.contextmanager
def _exclusive(path: Path, what: str, count: int) -> Iterator[None]:
    """Let one process at a time fill `path`; otherwise every rank of a run would decode everything.

    On a file system without locks, each fills its own copy, and the last one wins.
    """
    with open_own(path.with_name(f".{path.stem}.tmp"), os.O_TRUNC) as lock:
        with contextlib.suppress(OSError):
            while not try_lock(lock):
                time.sleep(0.1)
                report_progress(what, 0, count)
        yield


def _cache_path(made_from: Sequence[object], shape: tuple[int, ...]) -> Path:
    total = hashlib.sha256(repr((VERSION, shape)).encode())
    for part in made_from:
        total.update(repr(part).encode("utf-8", "backslashreplace"))
    return cache_folder() / f"{total.hexdigest()[:40]}.pixels"


def _open(path: Path, shape: tuple[int, ...], decode: Decode) -> CachedImages | None:
    """Open the file at `path`, verify its trailer and update its time of use; None if it is incomplete."""
    size = math.prod(shape)
    try:
        with path.open("rb") as file:
            count, rest = divmod(os.fstat(file.fileno()).st_size - DIGEST, size + PER_IMAGE)
            if rest or count <= 0:
                return None
            file.seek(count * size)
            body, claimed = file.read(PER_IMAGE * count), file.read(DIGEST)
        if hashlib.sha256(body).digest() != claimed:
            return None
        os.utime(path)
        sums = numpy.frombuffer(body, "<u4", count).astype(numpy.int64)
        good = numpy.frombuffer(body, numpy.uint8, count, 4 * count) > 0
        return CachedImages(path, shape, torch.from_numpy(good), torch.from_numpy(sums), decode)
    except OSError:
        return None


def _fill(path: Path, what: str, count: int, shape: tuple[int, ...], decode: Decode, skip_bad: bool) -> None:
    size = math.prod(shape)
    sums, good = numpy.zeros(count, "<u4"), numpy.ones(count, numpy.uint8)
    temporary = temporary_name(path)
    handle = open_bytes(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)  # nobody else's business

    def one(index: int) -> None:
        try:
            pixels = decode(index)
        except InputError:
            if not skip_bad:
                raise
            good[index] = 0
            pixels = torch.zeros(shape, dtype=torch.uint8)
        raw = pixels.contiguous().view(-1).numpy().data
        sums[index] = zlib.crc32(raw)
        if write_at(handle, raw, index * size) != size:
            raise OSError("a short write")

    try:
        os.truncate(temporary, count * size)
        for_each(what, count, one)
        body = sums.tobytes() + good.tobytes()
        write_at(handle, body + hashlib.sha256(body).digest(), count * size)
        # No fsync, which would wait for every byte: after a power loss, the checksums reveal what is missing.
        temporary.replace(path)
    finally:
        os.close(handle)
        temporary.unlink(missing_ok=True)


def wait_for_clock_tick(newest: int) -> None:
    """Wait until another change of a file last modified at `newest` (ns) would get a different timestamp."""
    now = time.time_ns()
    if now - CLOCK_TICK * 1e9 < newest <= now:
        time.sleep(CLOCK_TICK)


def by_last_use(folder: Path, suffix: str) -> list[tuple[int, int, Path]]:
    """(time of last use in ns, bytes, path) of each file in `folder` with `suffix`, oldest first.

    Files that another thread or process removes meanwhile are skipped.
    """
    found = []
    for path in folder.glob(f"*{suffix}"):
        with contextlib.suppress(FileNotFoundError):
            stat = path.stat()
            found.append((stat.st_mtime_ns, stat.st_size, path))
    return sorted(found)


def _in_use_here(path: Path) -> bool:
    """Whether the lock at `path` is held, or the draft is of a process that this one can see."""
    draft = TEMPORARY.fullmatch(path.name)
    owner = Owner.parse(draft[2]) if draft else None
    if owner is not None:
        return owner.is_here()
    try:
        with open_regular(path) as lock:
            return not path.is_symlink() and not try_lock(lock)
    except (InputError, OSError):
        return False


def _make_room(folder: Path, needed: int) -> bool:
    """Remove the least recently used files until `needed` more bytes fit; False if they cannot."""
    limit = limit_bytes()
    if needed > limit:
        return False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_temporary_files(folder)
        for used_at, _, path in by_last_use(folder, ".tmp"):  # locks, and drafts of other hosts
            if time.time() - used_at / 1e9 > STALE_SECONDS and not _in_use_here(path):  # a clock may have jumped
                path.unlink(missing_ok=True)
        files = by_last_use(folder, ".pixels")
        used = sum(size for _, size, _ in files)
        while files and (used + needed > limit or shutil.disk_usage(folder).free < needed + MIN_FREE):
            _, size, path = files.pop(0)
            path.unlink(missing_ok=True)
            used -= size
        return shutil.disk_usage(folder).free >= needed + MIN_FREE
    except OSError:
        return False
