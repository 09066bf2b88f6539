"""Decoded images on disk: decoded once, in parallel, and read back as plain bytes in every later epoch and run.

A file holds the pixels of one split of one data set, one after the other, then a
checksum an image. Its name is a hash of what it was made from, so a changed image
is never served from an old file. It is written beside its place and renamed when
whole; two runs that fill it at once write the same bytes, and one of them wins. Each
image's checksum is compared when a run first reads it, and a damaged one is decoded
again. The folder is bounded: what was used longest ago goes first.

Pixels are read with ``preadv`` into the batch, not mapped: mapped pages would count as
the process's memory, and the kernel keeps the file in its own cache either way.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy
import torch
from torch import Tensor

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.data.thread_map import for_each, tell

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

VERSION = 1
LIMIT_GB = 32.0
TICK = 0.02  # seconds; a file system's clock is not finer than this
STALE = 24 * 3600.0  # seconds after which a half-written file has no owner any more
PER_IMAGE, DIGEST = 5, 32  # bytes after the pixels: a CRC-32 and a mark each, and a SHA-256 of those
FREE = 2**30  # bytes of disk that are left alone


def cache_folder() -> Path:
    """BIGMODEL_CACHE, else ~/.cache/bigmodel; its folder of images."""
    return Path(os.environ.get("BIGMODEL_CACHE") or "~/.cache/bigmodel").expanduser() / "images"


def limit_bytes() -> int:
    """How large the cache may grow: BIGMODEL_CACHE_GB, else LIMIT_GB.

    Raises:
        InputError: BIGMODEL_CACHE_GB is no number.
    """
    text = os.environ.get("BIGMODEL_CACHE_GB", str(LIMIT_GB))
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise InputError(f"BIGMODEL_CACHE_GB={text}", "expected a size in GB, 0 for no cache")
    return int(value * 1e9)


class Stored:
    """N images of one shape in a file; see :func:`stored`."""

    def __init__(self, path: Path, shape: tuple[int, ...], good: Tensor, sums: Tensor, decode: Decode) -> None:
        self.path, self.shape, self.good, self._sums, self._decode = path, shape, good, sums, decode
        self._size = math.prod(shape)
        self._file = os.open(path, os.O_RDONLY)
        self._checked = torch.zeros(len(good), dtype=torch.bool)

    def read(self, indices: Sequence[int]) -> Tensor:
        """(B, *shape) uint8.

        Raises:
            InputError: one is damaged, and its image is not to be had any more.
        """
        out = torch.empty((len(indices), *self.shape), dtype=torch.uint8)
        rows = out.view(-1).numpy().data
        for place, index in enumerate(indices):
            row = rows[place * self._size : (place + 1) * self._size]
            whole = os.preadv(self._file, [row], index * self._size) == self._size
            if not self._checked[index]:
                if not whole or zlib.crc32(row) != int(self._sums[index]):
                    out[place] = self._repair(index)
                self._checked[index] = True
        return out

    def _repair(self, index: int) -> Tensor:
        pixels = self._decode(index)
        with contextlib.suppress(OSError):  # a cache that cannot be written is still one that can be decoded around
            file = os.open(self.path, os.O_WRONLY)
            try:
                os.pwrite(file, pixels.contiguous().view(-1).numpy().data, index * self._size)
            finally:
                os.close(file)
        return pixels

    def __del__(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            os.close(self._file)


Decode = Callable[[int], Tensor]
"""index -> (C,H,W) uint8. Called from several threads. Raises InputError where it cannot be decoded."""


def kept(made_from: Sequence[object], shape: tuple[int, ...], decode: Decode) -> Stored | None:
    """What :func:`stored` would find in the cache, however many they are; None where it is not there, or not whole."""
    return _open(_place(made_from, shape), shape, decode)


def stored(
    what: str, made_from: Sequence[object], count: int, shape: tuple[int, ...], decode: Decode, skip_bad: bool = False
) -> Stored | None:
    """The images 0 to `count` - 1, from the cache or decoded into it; None where the cache has no room for them.

    Args:
        what: what a person calls them, for progress.
        made_from: what decides the pixels and `count`: another value, another file.
        count: N.
        shape: (C,H,W) of every one.
        decode: makes one.
        skip_bad: mark undecodable ones in ``good`` instead of raising.
    """
    found = kept(made_from, shape, decode)
    if found is not None and len(found.good) == count and (skip_bad or bool(found.good.all())):
        return found
    path = _place(made_from, shape)
    if not _make_room(path.parent, count * (math.prod(shape) + PER_IMAGE) + DIGEST):
        return None
    try:
        with _alone(path, what, count):
            if _open(path, shape, decode) is None or found is not None:  # nobody else has filled it meanwhile
                _fill(path, what, count, shape, decode, skip_bad)
    except OSError:  # the disk filled up, or is not ours to write
        return None
    return _open(path, shape, decode)


@contextlib.contextmanager
def _alone(path: Path, what: str, count: int) -> Iterator[None]:
    """One process at a time fills `path`: the ranks of one run would all decode everything.

    Where the file system has no locks, each fills its own copy and the last one stays.
    """
    with path.with_name(f".{path.stem}.tmp").open("wb") as lock:
        while fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.1)
                tell(what, 0, count)
            except OSError:
                break
        yield


def _place(made_from: Sequence[object], shape: tuple[int, ...]) -> Path:
    total = hashlib.sha256(repr((VERSION, shape)).encode())
    for part in made_from:
        total.update(repr(part).encode("utf-8", "backslashreplace"))
    return cache_folder() / f"{total.hexdigest()[:40]}.pixels"


def _open(path: Path, shape: tuple[int, ...], decode: Decode) -> Stored | None:
    """The file at `path`, its trailer verified and its time of use renewed; None where it is not whole."""
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
        return Stored(path, shape, torch.from_numpy(good), torch.from_numpy(sums), decode)
    except OSError:
        return None


def _fill(path: Path, what: str, count: int, shape: tuple[int, ...], decode: Decode, skip_bad: bool) -> None:
    size = math.prod(shape)
    sums, good = numpy.zeros(count, "<u4"), numpy.ones(count, numpy.uint8)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.stem[:8]}.", suffix=".tmp", dir=path.parent)

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
        if os.pwrite(handle, raw, index * size) != size:
            raise OSError("a short write")

    try:
        os.truncate(temporary, count * size)
        for_each(what, count, one)
        body = sums.tobytes() + good.tobytes()
        os.pwrite(handle, body + hashlib.sha256(body).digest(), count * size)
        # Not synced to the disk, which waits for every byte: after a loss of power the sums tell what was lost.
        Path(temporary).replace(path)
    finally:
        os.close(handle)
        Path(temporary).unlink(missing_ok=True)


def settle(newest: int) -> None:
    """Wait until a file changed at `newest` (ns) would get another time if it were changed again."""
    now = time.time_ns()
    if now - TICK * 1e9 < newest <= now:
        time.sleep(TICK)


def oldest_first(folder: Path, suffix: str) -> list[tuple[int, int, Path]]:
    """(when it was used last in ns, bytes, path) of each file in `folder` that ends in `suffix`.

    What another thread or process removes meanwhile, to make room for its own, is left out.
    """
    found = []
    for path in folder.glob(f"*{suffix}"):
        with contextlib.suppress(FileNotFoundError):
            stat = path.stat()
            found.append((stat.st_mtime_ns, stat.st_size, path))
    return sorted(found)


def _make_room(folder: Path, needed: int) -> bool:
    """Remove what was used longest ago until `needed` more bytes fit; False where they never will."""
    limit = limit_bytes()
    if needed > limit:
        return False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for used_at, _, path in oldest_first(folder, ".tmp"):
            if time.time() - used_at / 1e9 > STALE:
                path.unlink(missing_ok=True)
        kept = oldest_first(folder, ".pixels")
        used = sum(size for _, size, _ in kept)
        while kept and (used + needed > limit or shutil.disk_usage(folder).free < needed + FREE):
            _, size, path = kept.pop(0)
            path.unlink(missing_ok=True)
            used -= size
        return shutil.disk_usage(folder).free >= needed + FREE
    except OSError:
        return False
