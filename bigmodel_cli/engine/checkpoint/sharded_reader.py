"""Reads sharded checkpoints: all of one, or the rows of one rank. See ``sharded.py`` for the format."""

from __future__ import annotations

import json
import math
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.files.regular_files import read_regular, require_few_containers
from bigmodel_cli.engine.checkpoint.sharded import (
    FORMAT,
    INDEX,
    SHARD_FILE,
    VERSION,
    ShardSpec,
    file_sha256,
    shard_rows,
    with_digest,
)

MAX_INDEX_BYTES = 256 * 2**20
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
TYPES = {str(t): t for t in (*FLOATS, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)}


@dataclass(frozen=True)
class StoredShard:
    """The rows of a tensor in one file: `rows` of them from `begin` on, or -1 for an unsharded tensor."""

    begin: int
    rows: int
    read_begin: int
    """The index of the first row in `values`."""
    values: Tensor | None
    """The rows that were read; None where none were wanted."""


def read_sharded(folder: Path, shard: ShardSpec | None = None) -> Any:
    """The state in `folder`, every byte of it verified.

    With `shard` only that rank's rows of sharded tensors are read. The others are zeros that take no memory
    until they are touched, so that tensors have their full shapes. Rank 0 verifies every file, another rank
    those that it reads.

    Raises:
        InputError: a shard is missing or damaged, or the index is not one of ours.
    """
    from safetensors import SafetensorError

    index = _read_index(folder)
    stored: dict[str, list[StoredShard]] = {}
    try:
        row_counts = _row_counts(index["state"])
        for entry in index["files"]:
            path = folder / entry["file"]
            if not SHARD_FILE.fullmatch(entry["file"]) or path.is_symlink() or not path.is_file():
                raise InputError(f"{path}: missing shard", "restore it from a copy")
            ranges = {k: _read_range(int(b), int(r), row_counts[k], shard) for k, (b, r) in entry["tensors"].items()}
            needed = shard is None or shard[0] == 0 or any(begin < end for begin, end in ranges.values())
            if path.stat().st_size != entry["bytes"] or (needed and file_sha256(path) != entry["sha256"]):
                raise InputError(f"{path}: damaged: its SHA-256 does not match", "restore it from a copy")
            values = _read_rows(path, entry["tensors"], ranges) if needed else {}
            for name, (begin, rows) in entry["tensors"].items():
                found = StoredShard(int(begin), int(rows), ranges[name][0], values.get(name))
                stored.setdefault(name, []).append(found)
        return _assemble(index["state"], stored, {}, shard is not None)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RuntimeError, OSError) as error:
        what = f"{folder}: not a sharded checkpoint ({type(error).__name__})"
        raise InputError(what, "restore it from a copy") from None
    except SafetensorError:
        raise InputError(f"{folder}: damaged", "restore it from a copy") from None


def sharded_progress(folder: Path) -> Any:
    """The progress of the run when it wrote the sharded checkpoint in `folder`, without its tensors.

    Raises:
        InputError: the index is damaged.
        LookupError, TypeError: it does not tell.
    """
    items = dict(_read_index(folder)["state"]["dict"])
    return dict(items["progress"]["dict"])


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    try:
        raw = read_regular(path, MAX_INDEX_BYTES)
        require_few_containers(path, raw)
        index = json.loads(raw)
        claimed = index.pop("sha256")
        valid = index["format"] == FORMAT and with_digest(index)["sha256"] == claimed
        version = index["version"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(f"{path}: damaged, or not one of ours", "restore it from a copy") from None
    if not valid:
        raise InputError(f"{path}: damaged: its SHA-256 does not match", "restore it from a copy")
    if version != VERSION:
        raise InputError(f"{path}: version {version!r}", f"this bigmodel reads {VERSION}")
    return index  # type: ignore[no-any-return]


def _row_counts(value: Any) -> dict[str, int]:
    """The number of rows of each tensor in the index."""
    if not isinstance(value, dict):
        return {}
    if "tensor" in value:
        return {value["tensor"]: int(value["shape"][0]) if value["shape"] else 0}
    ((kind, items),) = value.items()
    found: dict[str, int] = {}
    for item in (v for _, v in items) if kind == "dict" else items:
        found |= _row_counts(item)
    return found


def _read_range(begin: int, rows: int, row_count: int, shard: ShardSpec | None) -> tuple[int, int]:
    """The range [begin, end) to read of the rows in a file; (0, 1) for an unsharded tensor, which is always read."""
    if rows < 0:
        return 0, 1
    first, end = shard_rows(shard, row_count) if shard is not None else (0, row_count)
    return max(first, begin), min(end, begin + rows)


def _read_rows(path: Path, tensors: dict[str, Any], ranges: dict[str, tuple[int, int]]) -> dict[str, Tensor]:
    """The rows in `ranges` of the tensors in a shard file."""
    from safetensors import safe_open

    found: dict[str, Tensor] = {}
    with safe_open(path, "pt") as file:
        for name, (begin, rows) in tensors.items():
            first, end = ranges[name]
            if rows < 0:
                found[name] = file.get_tensor(name)
            elif first < end:
                slices = file.get_slice(name)
                if slices.get_shape()[0] != rows:
                    raise ValueError("rows")
                found[name] = slices[first - begin : end - begin]
    return found


def _assemble(value: Any, stored: dict[str, list[StoredShard]], done: dict[str, Tensor], sparse: bool) -> Any:
    """The state that the index describes, its tensors from `stored`; `done` keeps tied tensors tied."""
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        name = value["tensor"]
        if name not in done:
            done[name] = _concatenate(stored[name], value["shape"], TYPES[value["dtype"]], sparse)
        if list(done[name].shape) != value["shape"]:
            raise ValueError(name)
        return done[name]
    ((kind, items),) = value.items()
    if kind == "dict":
        return {k: _assemble(v, stored, done, sparse) for k, v in items if type(k) in (str, int)}
    return {"list": list, "tuple": tuple}[kind](_assemble(v, stored, done, sparse) for v in items)


def _concatenate(shards: list[StoredShard], shape: list[int], dtype: torch.dtype, sparse: bool) -> Tensor:
    """One tensor from its shards, which must cover it exactly.

    Raises:
        ValueError: they do not.
    """
    if any(shard.values is not None and shard.values.dtype != dtype for shard in shards):
        raise ValueError("types")
    if shards[0].rows < 0:
        assert shards[0].values is not None
        return shards[0].values
    shards = sorted(shards, key=lambda shard: shard.begin)
    end = 0
    for shard in shards:
        if shard.begin != end or shard.rows < 0:
            raise ValueError("rows")
        end += shard.rows
    if end != shape[0] or any(s.values is not None and list(s.values.shape[1:]) != shape[1:] for s in shards):
        raise ValueError("shape")  # before memory is asked for
    values = [shard.values for shard in shards if shard.values is not None]
    if values and not sparse:
        full = torch.cat(values)
    else:
        full = _lazy_zeros(shape, dtype)
        for shard in shards:
            if shard.values is not None:
                full[shard.read_begin : shard.read_begin + len(shard.values)] = shard.values
    if list(full.shape) != shape:
        raise ValueError("shape")
    return full


def _lazy_zeros(shape: list[int], dtype: torch.dtype) -> Tensor:
    """Zeros in anonymous pages, which the operating system allocates when they are written to."""
    count = math.prod(shape)
    memory = mmap.mmap(-1, max(count, 1) * dtype.itemsize)
    return torch.frombuffer(memory, dtype=dtype)[:count].view(shape)
