"""A checkpoint in parts: a folder in which each rank wrote its own tensors, and an index of them. Nothing in it runs.

    index.json                 the plain values, where each tensor lies, and the SHA-256 of every part
    part-00000.safetensors     what rank 0 held: its rows of what is cut, and all that is not
    part-00001.safetensors     ...

The ranks agree through the folder itself, which all of them see: rank 0 writes the index once every part is there.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bigmodel_cli.core import atomic_files
from bigmodel_cli.core.errors import InputError, MachineError

FORMAT, VERSION, INDEX = "bigmodel.parts", 1, "index.json"
PART = re.compile(r"part-\d{5}\.safetensors")
POLL = 0.02  # seconds between looks for the parts of the others
MOST_INDEX = 256 * 2**20  # bytes of JSON
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
TYPES = {str(t): t for t in (*FLOATS, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)}
Held = dict[str, tuple[Tensor, int, bool]]
"""Path of a tensor -> this rank's rows of it, the place of the first, and whether it is cut at all."""
Share = tuple[int, int]
"""A rank, and the number of ranks that what is cut is spread over."""


@dataclass(frozen=True)
class TensorShard:
    """What one part has of a tensor: so many `rows` from `begin` on, -1 for a whole one; `held` is what was read."""

    begin: int
    rows: int
    first: int
    """Of the rows in `held`."""
    held: Tensor | None


def is_sharded(path: Path) -> bool:
    return path.is_dir() and (path / INDEX).is_file()


def split_state(value: Any, rows: Callable[[Any], tuple[Tensor, int] | None], first: bool) -> tuple[Any, Held]:
    """`value` as JSON with each tensor by its path; and what this rank holds of them.

    `rows` gives a cut tensor's own rows and where they begin, None for a whole one, which only the `first` rank keeps.
    """
    mine: Held = {}

    def walk(item: Any, path: str) -> Any:
        if isinstance(item, Tensor):
            own = rows(item)
            if own is not None:
                mine[path] = (*own, True)
            elif first:
                mine[path] = (item.detach(), 0, False)
            return {"tensor": path, "shape": list(item.shape), "dtype": str(item.dtype)}
        if isinstance(item, dict):
            return {"dict": [[k, walk(v, f"{path}.{k}".lstrip("."))] for k, v in item.items()]}
        if isinstance(item, (list, tuple)):
            return {type(item).__name__: [walk(v, f"{path}.{i}") for i, v in enumerate(item)]}
        return item

    return walk(value, ""), mine


def write_shard(folder: Path, rank: int, tensors: dict[str, Tensor], begins: dict[str, int], cut: set[str]) -> None:
    """This rank's tensors, and beside them what the index will say of them.

    Raises:
        MachineError: the disk is full or cannot be written.
    """
    from safetensors.torch import save_file

    path = folder / f"part-{rank:05}.safetensors"

    def write(temporary: Path) -> None:
        seen: set[int] = set()
        apart = {}
        for name, tensor in tensors.items():  # safetensors takes no tensor twice, as tied weights are
            apart[name] = tensor.clone() if tensor.data_ptr() in seen else tensor.contiguous()
            seen.add(tensor.data_ptr())
        save_file(apart, temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())

    atomic_files.replace(path, write, lambda: sum(t.numel() * t.element_size() for t in tensors.values()))
    about = {"file": path.name, "bytes": path.stat().st_size, "sha256": _sha256(path)}
    about["tensors"] = {k: [begins[k], len(v) if k in cut else -1] for k, v in tensors.items()}
    _write_json(folder / f"part-{rank:05}.json", about)


def write_index(folder: Path, state: Any, world: int, timeout: float, abandoned: Callable[[], bool]) -> None:
    """Rank 0, last: the index, once the parts of all `world` ranks are there.

    Raises:
        MachineError: some did not come in time.
    """
    wanted = [folder / f"part-{rank:05}.json" for rank in range(world)]
    end = time.monotonic() + timeout
    while not all(path.exists() for path in wanted):
        if abandoned() or time.monotonic() > end:
            missing = next(i for i, path in enumerate(wanted) if not path.exists())
            raise MachineError(f"{folder}: the part of rank {missing} did not come", "expected a folder that all see")
        time.sleep(POLL)
    files = [json.loads(path.read_text(encoding="utf-8")) for path in wanted]
    _write_json(folder / INDEX, sealed({"format": FORMAT, "version": VERSION, "state": state, "files": files}))
    for path in wanted:
        path.unlink()


def sealed(index: dict[str, Any]) -> dict[str, Any]:
    return {**index, "sha256": hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()}


def _write_json(path: Path, value: Any) -> None:
    raw = json.dumps(value).encode()

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())

    atomic_files.replace(path, write, lambda: len(raw))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def rows_of(share: Share, rows: int) -> tuple[int, int]:
    """The first of the rank's rows of a tensor with `rows`, and the first that is not: as torch.chunk cuts."""
    rank, world = share
    each = -(-rows // world)
    return min(rank * each, rows), min((rank + 1) * each, rows)


def read(folder: Path, share: Share | None = None) -> Any:
    """The state in `folder`, every byte of it verified.

    With `share` only that rank's rows of what is cut are read. The others are zeros that take no
    memory until they are touched, so that shapes are those of the whole. Rank 0 verifies every
    part, another rank those that it reads.

    Raises:
        InputError: a part is missing or damaged, or the index is not one of ours.
    """
    from safetensors import SafetensorError

    index = _index(folder)
    pieces: dict[str, list[TensorShard]] = {}
    try:
        lengths = _lengths(index["state"])
        for about in index["files"]:
            path = folder / about["file"]
            if not PART.fullmatch(about["file"]) or path.is_symlink() or not path.is_file():
                raise InputError(f"{path}: no such part", "restore it from a copy")
            wanted = {k: _wanted(int(b), int(r), lengths[k], share) for k, (b, r) in about["tensors"].items()}
            needed = share is None or share[0] == 0 or any(a < b for a, b in wanted.values())
            if path.stat().st_size != about["bytes"] or (needed and _sha256(path) != about["sha256"]):
                raise InputError(f"{path}: damaged: its SHA-256 does not match", "restore it from a copy")
            held = _held(path, about["tensors"], wanted) if needed else {}
            for name, (begin, rows) in about["tensors"].items():
                pieces.setdefault(name, []).append(TensorShard(int(begin), int(rows), wanted[name][0], held.get(name)))
        return _put_together(index["state"], pieces, {}, share is not None)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, RecursionError, OSError) as error:
        what = f"{folder}: not a checkpoint in parts ({type(error).__name__})"
        raise InputError(what, "restore it from a copy") from None
    except SafetensorError:
        raise InputError(f"{folder}: damaged", "restore it from a copy") from None


def _index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    try:
        if path.stat().st_size > MOST_INDEX:
            raise InputError(f"{path}: refused: larger than {MOST_INDEX} bytes")
        index = json.loads(path.read_text(encoding="utf-8"))
        claimed = index.pop("sha256")
        right = index["format"] == FORMAT and sealed(index)["sha256"] == claimed
        version = index["version"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(f"{path}: damaged, or not one of ours", "restore it from a copy") from None
    if not right:
        raise InputError(f"{path}: damaged: its SHA-256 does not match", "restore it from a copy")
    if version != VERSION:
        raise InputError(f"{path}: version {version!r}", f"this bigmodel reads {VERSION}")
    return index  # type: ignore[no-any-return]


def _lengths(value: Any) -> dict[str, int]:
    """Of each tensor that the index describes, its rows."""
    if not isinstance(value, dict):
        return {}
    if "tensor" in value:
        return {value["tensor"]: int(value["shape"][0]) if value["shape"] else 0}
    ((kind, items),) = value.items()
    found: dict[str, int] = {}
    for item in (v for _, v in items) if kind == "dict" else items:
        found |= _lengths(item)
    return found


def _wanted(begin: int, rows: int, length: int, share: Share | None) -> tuple[int, int]:
    """Of the rows that a part has, the first to read and the first that is not; a whole tensor's are not counted."""
    if rows < 0:
        return 0, 1
    first, end = rows_of(share, length) if share is not None else (0, length)
    return max(first, begin), min(end, begin + rows)


def _held(path: Path, tensors: dict[str, Any], wanted: dict[str, tuple[int, int]]) -> dict[str, Tensor]:
    """Of the tensors in a part, the rows that are wanted."""
    from safetensors import safe_open

    found: dict[str, Tensor] = {}
    with safe_open(path, "pt") as file:
        for name, (begin, rows) in tensors.items():
            first, end = wanted[name]
            if rows < 0:
                found[name] = file.get_tensor(name)
            elif first < end:
                slices = file.get_slice(name)
                if slices.get_shape()[0] != rows:
                    raise ValueError("rows")
                found[name] = slices[first - begin : end - begin]
    return found


def _put_together(value: Any, pieces: dict[str, list[TensorShard]], done: dict[str, Tensor], sparse: bool) -> Any:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        name = value["tensor"]
        if name not in done:
            done[name] = _joined(pieces[name], value["shape"], TYPES[value["dtype"]], sparse)
        if list(done[name].shape) != value["shape"]:
            raise ValueError(name)
        return done[name]
    ((kind, items),) = value.items()
    if kind == "dict":
        return {k: _put_together(v, pieces, done, sparse) for k, v in items if type(k) in (str, int)}
    return {"list": list, "tuple": tuple}[kind](_put_together(v, pieces, done, sparse) for v in items)


def _joined(parts: list[TensorShard], shape: list[int], dtype: torch.dtype, sparse: bool) -> Tensor:
    """One tensor of its parts, which must cover it exactly.

    Raises:
        ValueError: they do not.
    """
    if any(part.held is not None and part.held.dtype != dtype for part in parts):
        raise ValueError("types")
    if parts[0].rows < 0:
        assert parts[0].held is not None
        return parts[0].held
    parts = sorted(parts, key=lambda p: p.begin)
    at = 0
    for part in parts:
        if part.begin != at or part.rows < 0:
            raise ValueError("rows")
        at += part.rows
    held = [part.held for part in parts if part.held is not None]
    if held and not sparse:
        whole = torch.cat(held)
    else:
        whole = _untouched(shape, dtype)
        for part in parts:
            if part.held is not None:
                whole[part.first : part.first + len(part.held)] = part.held
    if list(whole.shape) != shape or at != shape[0]:
        raise ValueError("shape")
    return whole


def _untouched(shape: list[int], dtype: torch.dtype) -> Tensor:
    """Zeros in pages that the system gives only when they are written to."""
    size = math.prod(shape)
    memory = mmap.mmap(-1, max(size, 1) * dtype.itemsize)
    return torch.frombuffer(memory, dtype=dtype)[:size].view(shape)
