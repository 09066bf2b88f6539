"""Checkpoints: atomic to write, verified before use, safe to open whoever made them.

One ordinary ``torch.save`` zip of tensors and plain values, so that
``torch.load(path)["model"]`` works for anyone. This file holds the project's one
``torch.load``.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bigmodel_cli.core.errors import InputError, MachineError

FORMAT = "bigmodel.checkpoint"
VERSION = 1
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""From version n to n + 1: pure functions on the whole dictionary, chained."""

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


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` to `path`: whole and durable, or not at all, the old file untouched until then.

    Raises:
        MachineError: the disk is full or cannot be written.
        TypeError: `state` holds something other than tensors and plain values.
    """
    state = {**state, "integrity": {"algo": "sha256", "digest": digest(state)}}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # a full disk is either, depending on which write met it
        temporary.unlink(missing_ok=True)
        needed, free = _size(state), shutil.disk_usage(path.parent).free
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "the write failed"
        raise MachineError(
            f"{path}: {reason}; about {needed} bytes needed, {free} free", hint="give another --out"
        ) from None
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def link(source: Path, target: Path) -> None:
    """Make `target` the file that `source` is now: no second copy on the disk, and as atomic as a save."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, temporary)
    temporary.replace(target)
    _sync_folder(target.parent)


def clean_temporary(folder: Path) -> None:
    """Remove what a killed save left behind. The caller holds the folder's lock."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def load(path: Path) -> dict[str, Any]:
    """The checkpoint at `path`, every byte of it verified, without running anything in it.

    Raises:
        InputError: missing, damaged, foreign, hostile, or made by a newer bigmodel.
    """
    state = _read(path)
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise InputError(f"{path}: not a bigmodel checkpoint", "expected one that bigmodel train made")
    version = state.get("version")
    if type(version) is not int or version < 1:
        raise InputError(f"{path}: version {version!r}", f"expected 1 to {VERSION}")
    if version > VERSION:
        raise InputError(f"{path}: made by a newer bigmodel (version {version})", f"this one reads up to {VERSION}")
    _check_schema(path, state, SCHEMA)
    _check_schema(path, state["meta"], META)
    claimed = state.pop("integrity")
    if claimed.get("algo") != "sha256" or claimed.get("digest") != digest(state):
        raise InputError(f"{path}: damaged: its digest does not match", "restore it from a copy")
    for step in range(version, VERSION):
        state = MIGRATIONS[step](state)
    return state


def fallback(folder: Path) -> tuple[Path, dict[str, Any], list[str]]:
    """The newest valid checkpoint of a run, and a line for each newer one that was not.

    Raises:
        InputError: there is none.
    """
    skipped: list[str] = []
    for path in sorted(folder.glob("*.pt"), key=lambda p: (p.stat().st_mtime_ns, p.name == "last.pt"), reverse=True):
        try:
            return path, load(path), skipped
        except InputError as error:
            skipped.append(f"skipped {error.what}")
    if skipped:
        raise InputError(f"{folder}: no valid checkpoint; {skipped[0]}", hint="start again with --overwrite")
    raise InputError(f"{folder}: no checkpoint to resume from", hint="start again with --overwrite")


def digest(value: Any) -> str:
    """SHA-256 over a canonical encoding: dictionary order does not count, every type, shape and byte does."""
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


def _read(path: Path) -> Any:
    """Bytes to values: each check comes before the step that it makes safe."""
    try:
        if not path.is_file():
            raise InputError(f"{path}: no such file" if not path.exists() else f"{path}: not a regular file")
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    _check_zip(path, raw)
    try:
        return torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    # A hostile pickle raises whatever it likes, and torch's own text suggests to turn safety off.
    except Exception as error:
        kind = type(error).__name__
        raise InputError(f"{path}: refused: not plain tensors and values ({kind})", "expected a checkpoint") from None


def _check_zip(path: Path, raw: bytes) -> None:
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            entries = archive.infolist()
            if any(e.compress_type != zipfile.ZIP_STORED or e.flag_bits & 1 for e in entries):
                raise InputError(f"{path}: refused: compressed entries", "expected a file made by torch.save")
            if len({e.filename for e in entries}) != len(entries):
                raise InputError(f"{path}: refused: an entry stands twice")
            if sum(e.file_size for e in entries) > len(raw):
                raise InputError(f"{path}: refused: larger inside than outside")
            broken = archive.testzip()
    except InputError:
        raise
    except Exception:  # zipfile raises many kinds on damaged directories (struct, value, key, unicode errors)
        raise InputError(f"{path}: not a checkpoint, or cut off", "expected a whole file made by torch.save") from None
    if broken is not None:
        raise InputError(f"{path}: damaged: checksum of {broken} does not match", "restore it from a copy")


def _check_schema(path: Path, values: dict[str, Any], schema: dict[str, tuple[type, ...]]) -> None:
    for key, kinds in schema.items():
        if key not in values:
            raise InputError(f"{path}: {key} is missing", "expected a whole bigmodel checkpoint")
        if not isinstance(values[key], kinds):
            kind = type(values[key]).__name__
            raise InputError(f"{path}: {key} is {kind}", f"expected {kinds[0].__name__}")


def _size(state: Any) -> int:
    """Bytes of the tensors in `state`."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    items = state.values() if isinstance(state, dict) else state if isinstance(state, (list, tuple)) else ()
    return sum(_size(item) for item in items)


def _sync_folder(folder: Path) -> None:
    """The rename itself must survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
