"""Streaming WebDataset shards: downloaded one by one as training reaches them, from a web server or a folder.

``bigmodel data index`` writes their index, a JSON file beside them: WebDataset's ``widsindex``, extended by what must
be known before the first sample is read (classes, sizes, checksums, mean and standard deviation of the pixels).
"""

from __future__ import annotations

import bisect
import collections
import contextlib
import functools
import hashlib
import itertools
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Annotated, Any, Literal
from urllib.parse import urlsplit

import torch
from pydantic import Field
from torch import Tensor

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.files.regular_files import open_regular
from bigmodel_cli.core.image.images import decode
from bigmodel_cli.core.recipe import cache_root
from bigmodel_cli.core.registry import data, natural
from bigmodel_cli.core.specs import Interpolation, Spec, ValueRange
from bigmodel_cli.core.types import Batch, DataBundle, ImageSpec
from bigmodel_cli.data.download import download
from bigmodel_cli.data.image.decode_cache import by_last_use, limit_bytes
from bigmodel_cli.data.image.listing import Item
from bigmodel_cli.data.image.value_range import Given, choose_range, suits
from bigmodel_cli.data.thread_map import decoder_pool
from bigmodel_cli.data.webdataset.images import shard_items, split_of
from bigmodel_cli.data.webdataset.order import next_shards, shard_order
from bigmodel_cli.data.webdataset.shard_index import Shard, ShardIndex, read_shard_index

MAX_OPEN = 64  # shards open at a time, with their lists of samples in memory


class ShardStream:
    """One split of shards, read by index; see :class:`bigmodel_cli.core.sources.OrderedSource`.

    A remote shard is downloaded when its first sample is needed, verified, and cached until other
    shards need the space. The next shard in the epoch's order is downloaded in the background.
    """

    def __init__(self, shards: tuple[Shard, ...], classes: tuple[str, ...],
                 how: tuple[int, int, Interpolation, ValueRange | None],
                 split: str, window: int) -> None:  # fmt: skip
        self.shards, self.split, self.window = shards, split, window
        self._how = how  # channels, side and interpolation of the decoded squares, and their values
        self._label = {name: k for k, name in enumerate(classes)}
        self._starts = [0, *itertools.accumulate(s.count for s in shards)]
        self._ahead = ThreadPoolExecutor(1, "shards")
        self._pending: dict[int, Future[Path]] = {}
        self._next: dict[int, int] = {}
        self._opened: collections.OrderedDict[int, tuple[IO[bytes], list[tuple[Item, int]]]] = collections.OrderedDict()
        self.downloaded: list[str] = []
        """URLs of the shards that this process has downloaded."""

    @functools.cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return decoder_pool()

    def __len__(self) -> int:
        return self._starts[-1]

    def order(self, generator: torch.Generator, steps: int) -> Tensor:
        """(n,) int64: the epoch's order, shuffled by shard and within windows; see ``shard_order``."""
        counts = [s.count for s in self.shards]
        shards = torch.randperm(len(counts), generator=generator).tolist()
        self._next = next_shards(counts, shards)
        return shard_order(counts, shards, self.window, steps, generator)

    def gather(self, indices: Tensor) -> Batch:
        found = [self._sample(i) for i in indices.tolist()]
        images = torch.stack(list(self._pool.map(self._decode, found)))
        return {"image": images, "label": torch.tensor([label for _, _, label in found]), "index": indices}

    def name(self, index: int) -> str:
        return self._sample(index)[1].name

    def _sample(self, index: int) -> tuple[IO[bytes], Item, int]:
        shard = bisect.bisect_right(self._starts, index) - 1
        file, items = self._open(shard)
        return file, *items[index - self._starts[shard]]

    def _decode(self, sample: tuple[IO[bytes], Item, int]) -> Tensor:
        file, item, _ = sample
        return decode(os.pread(file.fileno(), item.size, item.offset or 0), item.location, *self._how)

    def _open(self, shard: int) -> tuple[IO[bytes], list[tuple[Item, int]]]:
        """The open shard, and its samples with their labels.

        Raises:
            InputError: the samples do not match the index.
        """
        if shard in self._opened:
            self._opened.move_to_end(shard)
            return self._opened[shard]
        about = self.shards[shard]
        file, listed = self._open_and_list(shard)
        if len(listed) != about.count:
            raise InputError(f"{about.location}: {len(listed)} samples", f"the index says {about.count}")
        unknown = next((name for _, name in listed if name not in self._label), None)
        if unknown is not None:
            raise InputError(f"{about.location}: class {unknown!r}", "the index has others", "make it again")
        self._opened[shard] = file, [(item, self._label[name]) for item, name in listed]
        if len(self._opened) > MAX_OPEN:
            self._opened.popitem(last=False)  # closed with its last reference
        after = self._next.get(shard)
        if after is not None and self.shards[after].remote and after not in (*self._opened, *self._pending):
            self._pending[after] = self._ahead.submit(self._local_path, after)
        return self._opened[shard]

    def _open_and_list(self, shard: int) -> tuple[IO[bytes], list[tuple[Item, str]]]:
        """The open file, which stays readable even if it is evicted from the cache, and its samples."""
        for again in (True, True, False):
            path = self._pending.pop(shard).result() if shard in self._pending else self._local_path(shard)
            try:
                return open_regular(path), shard_items(path, None)
            except (OSError, InputError) as error:
                if again and not path.exists() and self.shards[shard].remote:  # evicted between two calls
                    continue
                if isinstance(error, InputError):
                    raise
                raise InputError(f"{path}: {error.strerror}", "expected the shard that the index names") from None
        raise AssertionError("the last attempt raises")

    def _local_path(self, shard: int) -> Path:
        about = self.shards[shard]
        return Path(about.location) if not about.remote else self._download(about)

    def _download(self, shard: Shard) -> Path:
        """The cached shard, downloaded if it is not there; the least recently used ones are evicted to make room."""
        folder = cache_root() / "streamed"
        path = folder / f"{shard.sha256}.tar"
        with contextlib.suppress(FileNotFoundError):  # another thread or process may be evicting it right now
            if path.stat().st_size == shard.size:
                os.utime(path)
                return path
        evict_shards(folder, shard.size)
        self.downloaded.append(shard.location)
        name = urlsplit(shard.location).path.rpartition("/")[2]
        return download([shard.location], path, what=f"shard {name}", sha256=shard.sha256, most=shard.size,
                        hint="--resume continues the run from its last checkpoint")  # fmt: skip


def evict_shards(folder: Path, needed: int) -> None:
    """Remove the least recently used shards from `folder` until `needed` more bytes fit into BIGMODEL_CACHE_GB."""
    folder.mkdir(parents=True, exist_ok=True)
    there = by_last_use(folder, ".tar")
    used = sum(size for _, size, _ in there)
    while there and used + needed > limit_bytes():
        _, size, path = there.pop(0)
        path.unlink(missing_ok=True)  # open handles stay readable
        used -= size


@data.register(reads=lambda given: 10 * given.text.startswith(("http://", "https://")))
def shard_stream(
    root: Path,
    like: Spec | None = None,
    fits: bool = False,
    *,
    path: Annotated[str, Field(description="of the index, or its http(s) URL")],
    sha256: Annotated[str | None, Field(pattern="^[0-9a-f]{64}$", description="of the index; null: any")] = None,
    size: Annotated[int, Field(ge=8, le=2048)] = 224,
    crop: Annotated[float, Field(ge=0.5, le=1)] = 0.875,
    interpolation: Interpolation = "bilinear",
    channels: Literal[1, 3] = 3,
    value_range: Given = None,
    window: Annotated[int, Field(gt=0, description="samples shuffled together, after shuffling the shards")] = 8192,
) -> DataBundle:
    """WebDataset image shards streamed from a web server or a folder, fetched as training reaches them."""
    index = read_shard_index(path, sha256)
    side = round(size / crop)
    splits = dict(index.splits)
    if "val" not in splits:
        cut = max(1, len(splits["train"]) // 10)
        if len(splits["train"]) < 2:
            raise InputError(f"{path}: one shard", "expected two or more, since val takes whole shards")
        splits |= {"train": splits["train"][:-cut], "val": splits["train"][-cut:]}

    chosen = range_of_index(index, like, value_range, fits)

    def load(split: str) -> ShardStream:
        how = (channels, side, interpolation, chosen)
        return ShardStream(splits[split], index.classes, how, split, window if split == "train" else 1)

    mean, std = (_in_channels(values, channels) for values in _normalisation(index, chosen))
    spec = ImageSpec(channels, size, size, index.classes, mean, std, side, crop, interpolation, chosen)
    loads = {split: functools.cache(functools.partial(load, split)) for split in splits}
    return DataBundle(spec, loads, index.fingerprint, _range_notes(index, chosen))


def range_of_index(index: ShardIndex, like: Spec | None, given: ValueRange | None, fits: bool) -> ValueRange | None:
    """As :func:`bigmodel_cli.data.image.value_range.choose_range`, where only the index has seen the images."""
    known = like.value_range if isinstance(like, ImageSpec) else None
    if given is not None or index.value_range is None:
        return given or known
    if isinstance(like, ImageSpec) and not fits:
        return known
    return known if known is not None and suits(known, index.value_range) else index.value_range


def _normalisation(index: ShardIndex, chosen: ValueRange | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and the deviation of the pixels, which were measured in the index's range, in the range `chosen`."""
    if index.value_range is None or chosen in (None, index.value_range):
        return index.mean, index.std
    (low, high), (first, last) = index.value_range, chosen
    scale = (high - low) / (last - first)
    moved = tuple(mean * scale + (low - first) / (last - first) for mean in index.mean)
    return moved, tuple(std * scale for std in index.std)


def _range_notes(index: ShardIndex, chosen: ValueRange | None) -> list[str]:
    if index.value_range is None:
        return []
    if chosen is None:
        return [
            "images have more than 8 bits, and those that the model was trained on had not: their high byte is read"
        ]
    return [f"images have more than 8 bits: data.value_range = [{chosen[0]:g}, {chosen[1]:g}] is black and white"]


def _in_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return values if len(values) == channels else (sum(values) / len(values),) * channels


def make_index(paths: list[Path], out: Path, notes: list[str] | None = None) -> dict[str, Any]:
    """Build the index of the shards at `paths`, which must be below the folder of `out`; `notes` takes what to know.

    Raises:
        InputError: a shard is damaged or elsewhere; the message names it.
    """
    entries: list[dict[str, Any]] = []
    classes: set[str] = set()
    looked: list[Item] = []
    folder = out.absolute().parent
    each = max(1, 2048 // len(paths))
    for path in paths:
        if not path.is_relative_to(folder):
            raise InputError(f"{path}: not below {folder}", "expected the index beside its shards")
        found = shard_items(path, None)
        classes |= {label for _, label in found}
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        looked += [item for item, _ in found[:: max(1, len(found) // each)]]
        url = path.relative_to(folder).as_posix()
        entries.append({"url": url, "nsamples": len(found), "bytes": path.stat().st_size, "sha256": digest,
                        "split": split_of(path)})  # fmt: skip
    value_range, said = choose_range([item for item in looked if split_of(Path(item.file)) == "train"] or looked,
                                     None, None, True)  # fmt: skip
    mean, std = _measure(looked, value_range)
    if notes is not None:
        notes += said
    return {
        "__kind__": "wids-shard-index-v1", "wids_version": 1, "shardlist": entries,
        "classes": sorted(classes, key=natural), "mean": mean.tolist(), "std": std.tolist(),
        **({"value_range": value_range} if value_range is not None else {}),
    }  # fmt: skip


def _measure(items: Sequence[Item], value_range: ValueRange | None) -> tuple[Tensor, Tensor]:
    """The mean and the standard deviation (3,) of the pixels of `items`, by channel."""
    pixels = torch.zeros(3, 3, dtype=torch.float64)  # sums, squares and counts by channel
    for item in items:
        x = decode(item.read(), item.location, 3, 128, value_range=value_range).double() / 255
        pixels += torch.stack([x.sum((1, 2)), x.square().sum((1, 2)), torch.full((3,), float(x[0].numel()))])
    mean = pixels[0] / pixels[2]
    return mean, (pixels[1] / pixels[2] - mean**2).clamp(min=0).sqrt().clamp(min=0.5 / 255)
