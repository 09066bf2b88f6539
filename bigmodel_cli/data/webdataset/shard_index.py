"""The index of WebDataset shards, a JSON file beside them: WebDataset's ``widsindex``, extended by what must be known
before the first sample is read (classes, sizes, checksums, mean and standard deviation of the pixels)."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin, urlsplit, urlunsplit

from bigmodel_cli.core.addresses import full, remember
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.files.regular_files import read_regular
from bigmodel_cli.core.specs import ValueRange
from bigmodel_cli.data.download import read_url

MAX_INDEX_BYTES = 64 * 2**20
MAX_SHARD_BYTES = 64 * 2**30


@dataclass(frozen=True)
class Shard:
    """One tar: its location (a URL or a path), number of samples, size in bytes and SHA-256."""

    location: str
    count: int
    size: int
    sha256: str

    @property
    def remote(self) -> bool:
        return "://" in self.location


@dataclass(frozen=True)
class ShardIndex:
    """The content of the index file; shards by split."""

    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    splits: dict[str, tuple[Shard, ...]]
    fingerprint: str
    value_range: ValueRange | None
    """What was black and white in images of more than 8 bits when their mean and deviation were measured."""


def is_address(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def read_shard_index(where: str, sha256: str | None = None) -> ShardIndex:
    """Read the index at `where`, a path or a URL; the shards' locations are relative to it.

    It holds the checksum of every shard. They come from the same server, so alone they find only damage: `sha256`,
    the index's own checksum from somewhere else, pins them all.

    Raises:
        InputError: it is not such an index, not the pinned one, or points outside its folder.
        MachineError: it cannot be reached.
    """
    raw = (
        read_url(where, MAX_INDEX_BYTES)
        if is_address(where)
        else read_regular(Path(where).expanduser(), MAX_INDEX_BYTES)
    )
    fingerprint = hashlib.sha256(raw).hexdigest()
    if sha256 not in (None, fingerprint):
        what = f"{where}: SHA-256 {fingerprint[:12]}..., data.sha256 is {str(sha256)[:12]}..."
        raise InputError(what, "expected the pinned index")
    try:
        about = json.loads(raw)
        splits: dict[str, tuple[Shard, ...]] = {}
        for entry in about["shardlist"]:
            location = _resolve_location(where, entry["url"])
            shard = Shard(location, int(entry["nsamples"]), int(entry["bytes"]), str(entry["sha256"]))
            sizes = 0 < shard.count <= 1 << 32 and 0 < shard.size <= MAX_SHARD_BYTES
            if not (sizes and re.fullmatch("[0-9a-f]{64}", shard.sha256)):  # it names a file of the cache
                raise ValueError(f"{entry['url']}: nsamples, bytes or sha256")
            split = str(entry.get("split", "train"))
            splits[split] = (*splits.get(split, ()), shard)
        classes = tuple(map(str, about["classes"]))
        mean, std = (tuple(map(float, about[k])) for k in ("mean", "std"))
        value_range = _range(about.get("value_range"))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{where}: {error!r}"[:180], "expected what `bigmodel data index` writes") from None
    if "train" not in splits or not classes or set(splits) - {"train", "val", "test"}:
        raise InputError(f"{where}: splits {', '.join(splits)}, {len(classes)} classes", "expected train and classes")
    return ShardIndex(classes, mean, std, splits, fingerprint, value_range)


def _range(found: object) -> ValueRange | None:
    if found is None:
        return None
    low, high = map(float, found)  # type: ignore[call-overload]
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"value_range is {found!r}")
    return low, high


def _resolve_location(index: str, url: str) -> str:
    """A shard's URL or path, which must be below the folder of the index."""
    if not isinstance(url, str) or "://" in url or url.startswith("/") or ".." in Path(url).parts:
        raise ValueError(f"{url!r} leads out of the index's folder")
    if not is_address(index):
        return str(Path(index).expanduser().absolute().parent / url)
    whole = urlsplit(urljoin(full(index), url))
    # What opens the index opens its shards: a user and password, or the query of a signed folder.
    return str(remember(urlunsplit(whole._replace(query=whole.query or urlsplit(full(index)).query))))
