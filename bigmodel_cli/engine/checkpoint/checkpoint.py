"""Checkpoints: written atomically, verified before use, safe to open from any source.

A checkpoint is an ordinary ``torch.save`` zip of tensors and plain values, so that
``torch.load(path)["model"]`` works for anyone. This file has the project's only ``torch.load``.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import torch
from torch import Tensor

from bigmodel_cli.core.errors import InputError, MachineError
from bigmodel_cli.core.files.atomic_files import replace
from bigmodel_cli.core.files.regular_files import open_regular
from bigmodel_cli.core.recipe import complete
from bigmodel_cli.engine.checkpoint import sharded
from bigmodel_cli.engine.checkpoint.inspect import damaged_entry, inspect_file, require_plain
from bigmodel_cli.engine.checkpoint.pt2_archive import load_pt2
from bigmodel_cli.engine.checkpoint.sharded_reader import read_sharded, sharded_progress

FORMAT = "bigmodel.checkpoint"
VERSION = 1
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""Migrations from version n to n + 1: pure functions of the checkpoint, applied in sequence."""

SCHEMA: dict[str, tuple[type, ...]] = {
    "format": (str,),
    "version": (int,),
    "model": (dict,),
    "model_ema": (dict, type(None)),
    "optimizer": (dict,),
    "scheduler": (dict, type(None)),
    "scaler": (dict, type(None)),
    "progress": (dict,),
    "rng": (dict,),
    "meta": (dict,),
    "integrity": (dict,),
}
META: dict[str, tuple[type, ...]] = {
    "arch": (str,), "arch_args": (dict,), "task": (str,), "classes": (list,), "input": (dict,),
    "data": (dict,), "recipe": (dict,), "env": (dict,), "created": (float, int),
}  # fmt: skip


def save(path: Path, state: dict[str, Any], abandoned: Callable[[], bool] = lambda: False) -> None:
    """Write `state` to `path` atomically and durably; the old file stays until then.

    Once `abandoned` returns true the write stops early and leaves nothing.

    Raises:
        MachineError: the disk is full or cannot be written.
        TypeError: `state` holds something other than tensors and plain values.
    """
    state = {**state, "integrity": {"algo": "sha256", "digest": digest(state)}}

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            torch.save(state, cast(IO[bytes], _Abandonable(file, abandoned)))

    replace(path, write, lambda: tensor_bytes(state))


class _Abandonable:
    """A file for ``torch.save`` whose writes raise once the save is abandoned."""

    def __init__(self, file: IO[bytes], abandoned: Callable[[], bool]) -> None:
        self.file, self.abandoned = file, abandoned

    def write(self, data: Any) -> int:
        if self.abandoned():
            raise RuntimeError("abandoned")
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def load(path: Path, shard: sharded.ShardSpec | None = None) -> dict[str, Any]:
    """The checkpoint at `path`, every byte of it verified, without running anything in it.

    With `shard` only that rank's rows of a sharded checkpoint are read: see ``sharded_reader.read_sharded``.

    Raises:
        InputError: missing, damaged, foreign, hostile, or made by a newer bigmodel.
    """
    return load_with_version(path, shard)[1]


def load_with_version(path: Path, shard: sharded.ShardSpec | None = None) -> tuple[int, dict[str, Any]]:
    """The version of the file, and the checkpoint migrated to the current version."""
    if sharded.is_sharded(path):
        state = read_sharded(path, shard)
        if not isinstance(state, dict):
            raise InputError(f"{path}: not a bigmodel checkpoint")
        _check_schema(path, {**state, "integrity": {}}, SCHEMA)  # the SHA-256 of each shard is verified
        _check_schema(path, state["meta"], META)
        return VERSION, _with_complete_recipe(state)
    state = read(path)
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise InputError(
            f"{path}: not a bigmodel checkpoint",
            "expected one written by bigmodel train",
            f"bigmodel checkpoint show {path}",
        )
    version = state.get("version")
    if type(version) is not int or version < 1:
        raise InputError(f"{path}: version {version!r}", f"expected 1 to {VERSION}")
    if version > VERSION:
        raise InputError(f"{path}: made by a newer bigmodel (version {version})", f"this one reads up to {VERSION}")
    if version == VERSION:  # an older one meets the schema after its migration
        _check_schema(path, state, SCHEMA)
    _check_digest(path, state)
    for step in range(version, VERSION):
        state = {**MIGRATIONS[step](state), "version": step + 1}
    _check_schema(path, {**state, "integrity": {}}, SCHEMA)
    _check_schema(path, state["meta"], META)
    return version, _with_complete_recipe(state)


def _with_complete_recipe(state: dict[str, Any]) -> dict[str, Any]:
    return {**state, "meta": {**state["meta"], "recipe": complete(state["meta"]["recipe"])}}


def _check_digest(path: Path, state: dict[str, Any]) -> None:
    """Verify the digest in `state`, and remove it."""
    claimed = state.pop("integrity", None)
    try:
        valid = isinstance(claimed, dict) and claimed == {"algo": "sha256", "digest": digest(state)}
    except TypeError as error:
        raise InputError(f"{path}: refused: {error}", "expected tensors and plain values") from None
    if not valid:
        raise InputError(f"{path}: damaged: its digest does not match", "restore it from a copy")


class Found(NamedTuple):
    """The checkpoint to resume from, and each one that was passed over with the reason."""

    path: Path
    state: dict[str, Any]
    skipped: list[tuple[Path, str]]


def newest_valid(folder: Path, shard: sharded.ShardSpec | None = None) -> Found:
    """The valid checkpoint of a run that is furthest in training. No clock decides: one may have been set back.

    Raises:
        InputError: there is none.
    """
    skipped: list[tuple[Path, str]] = []
    for path in sorted(folder.glob("*.pt"), key=_order, reverse=True):
        try:
            return Found(path, load(path, shard), skipped)
        except InputError as error:
            skipped.append((path, error.what))
    if skipped:
        raise InputError(f"{folder}: no valid checkpoint; {skipped[0][1]}", hint="start again with --overwrite")
    raise InputError(f"{folder}: no checkpoint to resume from", hint="start again with --overwrite")


def _order(path: Path) -> tuple[bool, tuple[int, ...], bool]:
    """Sorts a run's checkpoints by progress. One that does not tell it counts as the furthest, so that it is named."""
    try:
        progress = (sharded_progress(path) if sharded.is_sharded(path) else inspect_file(path).values["progress"]) or {}
        steps = (progress["step"], progress.get("epoch", 0), progress.get("batch_in_epoch", 0))
    except (InputError, MachineError, LookupError, TypeError, AttributeError, ValueError):
        steps = (None, 0, 0)
    known = all(type(n) is int for n in steps)
    return not known, steps if known else (), path.name == "last.pt"


def digest(value: Any) -> str:
    """SHA-256 of a canonical encoding, which covers every type, shape and byte but not the order of dictionaries."""
    total = hashlib.sha256()
    for part in _encode(value, "state"):
        total.update(part)
    return total.hexdigest()


def _encode(value: Any, where: str) -> Iterator[Any]:
    if isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous().reshape(-1)
        yield f"T{value.dtype}{tuple(value.shape)}".encode()
        yield flat.view(torch.uint8).numpy().data if flat.numel() else b""
    elif isinstance(value, dict):
        yield f"D{len(value)}".encode()
        for key in sorted(value, key=lambda k: (type(k).__name__, k)):
            if type(key) not in (str, int):
                raise TypeError(f"{where}: key {key!r} of {type(key).__name__}")
            yield from _encode(key, where)
            yield from _encode(value[key], f"{where}.{key}")
    elif isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        yield f"{'L' if type(value) is list else 'U'}{len(value)}".encode()
        for i, item in enumerate(value):
            yield from _encode(item, f"{where}[{i}]")
    elif type(value) is float:
        yield b"F" + struct.pack("<d", value)
    elif value is None or type(value) in (bool, int, str):
        text = str(value).encode("utf-8", "surrogatepass")
        yield f"{type(value).__name__}{len(text)}:".encode() + text
    else:
        raise TypeError(f"{where}: {type(value).__name__} does not belong in a checkpoint")


def read(path: Path) -> Any:
    """The values in any file written by torch.save, safetensors or torch.export, checked before they are loaded.

    Raises:
        InputError: it is damaged, or holds anything but tensors and plain values.
    """
    found = inspect_file(path)
    require_plain(found)
    if found.kind == "safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    with open_regular(path) as file:
        _check_sums(path, file)
        file.seek(0)
        if found.kind == "pt2":
            return load_pt2(path, found.tensors())
        del found  # before torch builds the same values once more
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        # A hostile pickle can raise any error, and torch's message suggests turning the check off.
        except Exception as error:
            what = f"{path}: refused: not plain tensors and values ({type(error).__name__})"
            raise InputError(what, "expected a checkpoint") from None


def _check_sums(path: Path, file: IO[bytes]) -> None:
    broken = damaged_entry(file)
    if broken is not None:
        raise InputError(f"{path}: damaged: checksum of {broken} does not match", "restore it from a copy")


def _check_schema(path: Path, values: dict[str, Any], schema: dict[str, tuple[type, ...]]) -> None:
    for key, kinds in schema.items():
        if key not in values:
            raise InputError(f"{path}: {key} is missing", "expected a complete bigmodel checkpoint")
        if not isinstance(values[key], kinds):
            kind = type(values[key]).__name__
            raise InputError(f"{path}: {key} is {kind}", f"expected {kinds[0].__name__}")


def tensor_bytes(state: Any) -> int:
    """Bytes of the tensors in `state`."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    items = state.values() if isinstance(state, dict) else state if isinstance(state, (list, tuple)) else ()
    return sum(tensor_bytes(item) for item in items)
