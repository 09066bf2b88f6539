"""Sharded checkpoints: a folder to which each rank wrote its own tensors, with an index. Nothing in it can run code.

    index.json                 plain values, the place of each tensor, and the SHA-256 of every shard
    part-00000.safetensors     rank 0: its rows of sharded tensors, and all unsharded ones
    part-00001.safetensors     rank 1: its rows of sharded tensors
    ...

The ranks synchronize through the folder, which all of them see: rank 0 writes the index once every shard is there.
``sharded_reader.py`` reads them.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from bigmodel_cli.core.errors import MachineError
from bigmodel_cli.core.files import atomic_files

FORMAT, VERSION, INDEX = "bigmodel.parts", 1, "index.json"
SHARD_FILE = re.compile(r"part-\d{5}\.safetensors")
POLL_SECONDS = 0.02  # between checks for the shards of other ranks


class LocalTensor(NamedTuple):
    """This rank's rows of a tensor: `begin` is the index of the first. Only rank 0 holds unsharded ones."""

    rows: Tensor
    begin: int
    is_sharded: bool


LocalTensors = dict[str, LocalTensor]
"""What this rank holds, by the path of the tensor in the state."""


class ShardSpec(NamedTuple):
    """Whose rows to read: `rank` of the `world` ranks over which tensors are sharded."""

    rank: int
    world: int


def is_sharded(path: Path) -> bool:
    return path.is_dir() and (path / INDEX).is_file()


def split_state(
    value: Any, local_rows: Callable[[Any], tuple[Tensor, int] | None], is_main: bool
) -> tuple[Any, LocalTensors]:
    """`value` as JSON with each tensor replaced by its path, and the tensors that this rank holds.

    `local_rows` gives this rank's rows of a sharded tensor and the index of the first, and None for an unsharded
    tensor, which only the main rank holds.
    """
    local: LocalTensors = {}

    def describe(item: Any, path: str) -> Any:
        if isinstance(item, Tensor):
            rows = local_rows(item)
            if rows is not None:
                local[path] = LocalTensor(*rows, True)
            elif is_main:
                local[path] = LocalTensor(item.detach(), 0, False)
            return {"tensor": path, "shape": list(item.shape), "dtype": str(item.dtype)}
        if isinstance(item, dict):
            return {"dict": [[k, describe(v, f"{path}.{k}".lstrip("."))] for k, v in item.items()]}
        if isinstance(item, (list, tuple)):
            return {type(item).__name__: [describe(v, f"{path}.{i}") for i, v in enumerate(item)]}
        return item

    return describe(value, ""), local


def write_shard(folder: Path, rank: int, tensors: LocalTensors) -> None:
    """Write this rank's tensors, and their entry for the index.

    Raises:
        MachineError: the disk is full or cannot be written.
    """
    from safetensors.torch import save_file

    path = folder / f"part-{rank:05}.safetensors"

    def write(temporary: Path) -> None:
        seen: set[int] = set()
        distinct = {}
        for name, (rows, _, _) in tensors.items():  # safetensors refuses shared memory, as tied weights have
            distinct[name] = rows.clone() if rows.data_ptr() in seen else rows.contiguous()
            seen.add(rows.data_ptr())
        save_file(distinct, temporary)

    atomic_files.replace(path, write, lambda: sum(t.rows.numel() * t.rows.element_size() for t in tensors.values()))
    entry = {"file": path.name, "bytes": path.stat().st_size, "sha256": file_sha256(path)}
    entry["tensors"] = {k: [t.begin, len(t.rows) if t.is_sharded else -1] for k, t in tensors.items()}
    atomic_files.write_text(folder / f"part-{rank:05}.json", json.dumps(entry))


def write_index(folder: Path, state: Any, world: int, timeout: float, abandoned: Callable[[], bool]) -> None:
    """Write the index. Only rank 0 does, as the last step, once the shards of all `world` ranks are there.

    Raises:
        MachineError: a shard did not arrive within `timeout` seconds.
    """
    entries = [folder / f"part-{rank:05}.json" for rank in range(world)]
    end = time.monotonic() + timeout
    while not all(path.exists() for path in entries):
        if abandoned() or time.monotonic() > end:
            missing = next(i for i, path in enumerate(entries) if not path.exists())
            raise MachineError(f"{folder}: no shard from rank {missing}", "expected a folder that all ranks see")
        time.sleep(POLL_SECONDS)
    files = [json.loads(path.read_text(encoding="utf-8")) for path in entries]
    index = with_digest({"format": FORMAT, "version": VERSION, "state": state, "files": files})
    atomic_files.write_text(folder / INDEX, json.dumps(index))
    for path in entries:
        path.unlink()


def with_digest(index: dict[str, Any]) -> dict[str, Any]:
    """`index` with the SHA-256 of its canonical JSON."""
    return {**index, "sha256": hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()}


def file_sha256(path: Path) -> str:
    """The SHA-256 of the file at `path`, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shard_rows(shard: ShardSpec, rows: int) -> tuple[int, int]:
    """The rank's range [begin, end) of a tensor's `rows`, as torch.chunk divides them."""
    rank, world = shard
    rows_per_rank = -(-rows // world)
    return min(rank * rows_per_rank, rows), min((rank + 1) * rows_per_rank, rows)
