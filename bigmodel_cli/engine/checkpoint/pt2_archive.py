"""The weights in a ``.pt2`` file of torch.export, read without torch's loader, which can run code in it.

The program in it (``models/*.json``) and pickled tensors stay unread. Weights that torch stored as plain bytes are
described by ``data/weights/*_weights_config.json``; each has an entry of its own in the zip.
https://docs.pytorch.org/docs/stable/user_guide/torch_compiler/export/pt2_archive.html
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.files.regular_files import open_regular
from bigmodel_cli.engine.checkpoint.safe_pickle import MAX_DEPTH
from bigmodel_cli.engine.checkpoint.tensor_refs import SIZES, Opaque, StorageRef, TensorRef

if TYPE_CHECKING:
    from torch import Tensor

# torch/_export/serde/schema.py: ScalarType.
DTYPES = {
    1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32", 8: "float64",
    10: "complex64", 11: "complex128", 12: "bool", 13: "bfloat16", 28: "uint16", 29: "float8_e4m3fn",
    30: "float8_e5m2", 31: "float8_e4m3fnuz", 32: "float8_e5m2fnuz", 33: "float8_e8m0fnu", 34: "uint32", 35: "uint64",
}  # fmt: skip
CONFIG = "_weights_config.json"
WEIGHTS = "/data/weights/"
CARRIED = "/extra/bigmodel.json"
MAX_CONFIG = 64 * 2**20  # bytes; 35 kB describe a ResNet-20
EXPECTED = "expected weights as torch.export writes them"


def is_pt2(entries: Mapping[str, zipfile.ZipInfo]) -> bool:
    """Whether the zip with these entries is an archive of torch.export."""
    return any(WEIGHTS in f"/{name}" and name.endswith(CONFIG) for name in entries)


def read_pt2(
    path: Path, file: IO[bytes], entries: Mapping[str, zipfile.ZipInfo]
) -> tuple[dict[str, TensorRef | Opaque], dict[str, str]]:
    """The weights by name, an Opaque for each pickled one, and what ``bigmodel export`` wrote beside them.

    Raises:
        InputError: the description does not fit the bytes in the archive.
    """
    weights: dict[str, TensorRef | Opaque] = {}
    metadata: dict[str, str] = {}
    with zipfile.ZipFile(file) as archive:
        for name, entry in entries.items():
            if name.endswith(CONFIG) and WEIGHTS in name:
                for key, item in _object(path, archive, entry, "config").items():
                    weights[key] = _weight(path, key, item, name.rpartition("/")[0], entries)
            elif name.endswith(CARRIED):
                carried = _object(path, archive, entry)
                metadata = {k: v if isinstance(v, str) else json.dumps(v) for k, v in carried.items()}
    return weights, metadata


def load_pt2(path: Path, weights: Iterable[tuple[str, TensorRef]]) -> dict[str, Tensor]:
    """The described `weights` as tensors with memory of their own."""
    import torch

    loaded: dict[str, Tensor] = {}
    with open_regular(path) as file, zipfile.ZipFile(file) as archive:
        for name, ref in weights:
            dtype = getattr(torch, ref.dtype)
            data = bytearray(archive.read(ref.storage.key))
            flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
            loaded[name] = flat.as_strided(ref.shape, ref.stride, ref.offset).contiguous()
    return loaded


def _object(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, part: str | None = None) -> dict[str, Any]:
    if entry.file_size > MAX_CONFIG:
        raise InputError(f"{path}: refused: {entry.file_size} bytes in {entry.filename}", f"at most {MAX_CONFIG}")
    try:
        value = json.loads(archive.read(entry))
        value = value[part] if part else value
    except (ValueError, KeyError, TypeError, RecursionError, zipfile.BadZipFile):
        value = None
    if not isinstance(value, dict):
        raise InputError(f"{path}: damaged: {entry.filename} is no description", EXPECTED)
    return value


def _weight(
    path: Path, name: str, item: Any, folder: str, entries: Mapping[str, zipfile.ZipInfo]
) -> TensorRef | Opaque:
    try:
        meta, key = item["tensor_meta"], f"{folder}/{item['path_name']}"
        dtype, entry = DTYPES[meta["dtype"]], entries[key]
        shape, stride = (tuple(int(n["as_int"]) for n in meta[part]) for part in ("sizes", "strides"))
        offset = int(meta["storage_offset"]["as_int"])
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path}: refused: {name[:80]!r} is not described as a tensor", EXPECTED) from None
    if len(shape) > MAX_DEPTH or len(stride) != len(shape) or min((offset, *shape, *stride)) < 0:
        raise InputError(f"{path}: refused: {name[:80]!r} has the shape {shape[:4]}", EXPECTED)
    if item.get("use_pickle") is not False:
        return Opaque(f"the pickle of {name}")
    count, rest = divmod(entry.file_size, SIZES[dtype])
    if rest:
        raise InputError(f"{path}: refused: {name[:80]!r} has {entry.file_size} bytes of {dtype}", EXPECTED)
    if math.prod(shape) > count:
        raise InputError(f"{path}: refused: {name[:80]!r} needs {math.prod(shape)} elements", f"the file has {count}")
    return TensorRef(dtype, shape, StorageRef(dtype, key, count), offset, stride)
