"""What a ``.pt``, ``.safetensors`` or ``.pt2`` file from any source holds, described without running or loading it.

The zip structure is checked first, so that torch's zip reader and ours cannot see different files in the same
bytes: uncompressed entries in one folder, unique names, and no unaccounted bytes before, between or after them.
"""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from bigmodel_cli.core.errors import InputError, MachineError
from bigmodel_cli.core.files.file_kinds import kind_of, program_in
from bigmodel_cli.core.files.regular_files import open_regular
from bigmodel_cli.core.processes.host_memory import memory_total
from bigmodel_cli.engine.checkpoint.pt2_archive import is_pt2, read_pt2
from bigmodel_cli.engine.checkpoint.safe_pickle import MAX_DEPTH, Plain, Unreadable, read_plain
from bigmodel_cli.engine.checkpoint.tensor_refs import Opaque, TensorRef

MAX_PICKLE = 256 * 2**20  # bytes of the pickle, without tensors; the largest models have a few MB
MAX_ENTRIES = 1_000_000
MAX_HEADER = 100_000_000  # bytes of the header of a safetensors file, as its library has it
CONVERT = (
    "where you trust it: python -c 'import torch; from safetensors.torch import save_file; "
    'save_file(torch.load("FILE"), "FILE.safetensors")\''
)
SAFETENSORS_TYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool", "U16": "uint16", "U32": "uint32", "U64": "uint64",
    "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip


@dataclass(frozen=True)
class Contents:
    """One file. `values` are plain values, with a TensorRef for each tensor and an Opaque for any other object."""

    path: Path
    kind: Literal["torch", "safetensors", "pt2"]
    size: int
    values: Any
    special: Sequence[tuple[str, TensorRef | Opaque]]
    """Each tensor and each other object in `values`, with its path."""
    metadata: dict[str, str] = field(default_factory=dict)
    """The metadata of a safetensors file, and what ``bigmodel export`` wrote into a ``.pt2``."""

    def tensors(self) -> Iterator[tuple[str, TensorRef]]:
        """Each tensor with its path, such as ``model.fc.weight``."""
        return ((name, item) for name, item in self.special if isinstance(item, TensorRef))

    def opaque_names(self) -> list[str]:
        """The names of the classes and functions that the file refers to, beyond tensors and plain values."""
        return sorted({item.name for _, item in self.special if isinstance(item, Opaque)})


def inspect_file(path: Path) -> Contents:
    """Describe the file at `path`.

    Raises:
        InputError: it is missing, damaged, or of a format that cannot be opened safely.
    """
    with open_regular(path) as file:
        start, size = file.read(9), os.fstat(file.fileno()).st_size
        file.seek(0)
        if start[:4] == b"PK\x03\x04":
            entries = _entries(path, file, size)
            if is_pt2(entries):
                weights, metadata = read_pt2(path, file, entries)
                return Contents(path, "pt2", size, weights, list(weights.items()), metadata)
            plain = _torch(path, file, entries)
            return Contents(path, "torch", size, plain.value, plain.special)
        if start[8:] == b"{" and int.from_bytes(start[:8], "little") <= MAX_HEADER:
            return _safetensors(path, size)
    if start[:1] == b"\x80" or start[:2] in (b"(d", b"ct", b"cc", b"cp"):
        raise InputError(
            f"{path}: an old pickle file, which could run code", "expected a zip made by torch.save", CONVERT
        )
    what = f"it is {kind}" if (kind := kind_of(path)) else "or truncated"
    raise InputError(f"{path}: not a checkpoint, {what}", "expected a complete .pt, .pt2 or .safetensors file")


def require_plain(contents: Contents) -> None:
    """Require that the file holds only tensors and plain values, and each tensor lies within its storage.

    Raises:
        InputError: it holds anything else.
    """
    path, opaque = contents.path, contents.opaque_names()
    if opaque:
        names = ", ".join(opaque[:3]) + (f" and {len(opaque) - 3} more" if len(opaque) > 3 else "")
        raise InputError(f"{path}: refused: it would run {names}", "expected tensors and plain values", CONVERT)
    total = 0
    for name, tensor in contents.tensors():
        total += tensor.nbytes
        if not tensor.in_bounds():
            raise InputError(f"{path}: refused: {name} reaches beyond its storage", "expected a contiguous tensor")
    if total > 8 * contents.size:  # tied weights share a storage a few times, not a million times
        raise InputError(f"{path}: refused: its tensors are larger than the file", f"{total} of {contents.size} bytes")


def damaged_entry(file: IO[bytes]) -> str | None:
    """The first zip entry whose CRC-32 does not match: torch does not check it, and would load a flipped bit."""
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip()
    except Exception:  # zipfile raises many kinds on damaged headers (struct, value, key, unicode errors)
        return "an entry"


def _torch(path: Path, file: IO[bytes], entries: dict[str, zipfile.ZipInfo]) -> Plain:
    root = next(iter(entries)).partition("/")[0]
    pickle = entries.get(f"{root}/data.pkl")
    if pickle is None:
        raise InputError(f"{path}: a zip, but not one of torch.save", "expected a .pt, .pt2 or .safetensors file")
    if pickle.file_size > MAX_PICKLE:
        raise InputError(f"{path}: refused: {pickle.file_size} bytes of structure", f"expected at most {MAX_PICKLE}")
    try:
        with zipfile.ZipFile(file) as archive:
            plain = read_plain(archive.read(pickle))
    except Unreadable as error:
        raise InputError(f"{path}: refused: {error}", "expected a file made by torch.save") from None
    except Exception:  # a wrong checksum or a broken local header
        raise InputError(f"{path}: damaged: its structure cannot be read", "restore it from a copy") from None
    for name, item in plain.special:
        if isinstance(item, TensorRef):
            entry = entries.get(f"{root}/data/{item.storage.key}")
            declared = item.storage.bytes
            if entry is None or not declared <= entry.file_size:
                found = "none" if entry is None else entry.file_size
                raise InputError(f"{path}: refused: {name} needs {declared} bytes", f"the file has {found}")
    return plain


def _entries(path: Path, file: IO[bytes], size: int) -> dict[str, zipfile.ZipInfo]:
    """The entries of the zip by name, after checks of its structure."""
    expected = "expected a file made by torch.save"
    if size > memory_total():
        raise MachineError(f"{path}: {size} bytes", f"this machine has {memory_total()} bytes of memory")
    try:
        file.seek(max(size - 22, 0))
        end = file.read(22)
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            comments, directory = archive.comment or any(e.comment for e in entries), archive.start_dir
    except Exception:  # zipfile raises many kinds on damaged directories (struct, value, key, unicode errors)
        raise InputError(f"{path}: not a checkpoint, or truncated", "expected a file made by torch.save") from None
    if not entries or len(entries) > MAX_ENTRIES:
        raise InputError(f"{path}: refused: {len(entries)} entries", expected)
    if program := program_in(entry.filename for entry in entries):
        raise InputError(f"{path}: {program}", "expected weights")
    if any(e.compress_type != zipfile.ZIP_STORED or e.flag_bits & 1 for e in entries):
        raise InputError(f"{path}: refused: compressed entries", expected)
    # torch's reader ignores case when it looks up an entry.
    if len({e.filename.lower() for e in entries}) != len(entries):
        raise InputError(f"{path}: refused: duplicate entries", expected)
    roots = {e.filename.partition("/")[0] for e in entries}
    if len(roots) != 1 or any({"..", ""} & set(e.filename.split("/")) or "\\" in e.filename for e in entries):
        raise InputError(f"{path}: refused: entries outside one folder", expected)
    if comments or end[:4] != b"PK\x05\x06":
        raise InputError(f"{path}: refused: bytes after the end of the zip", expected)
    _check_layout(path, file, entries, directory)
    return {e.filename: e for e in entries}


def _check_layout(path: Path, file: IO[bytes], entries: list[zipfile.ZipInfo], directory: int) -> None:
    """Check that local headers agree with the directory, and that entries fill the file from byte 0 up to it."""
    expected = "expected a file made by torch.save"
    ordered = sorted(entries, key=lambda e: e.header_offset)
    starts = [e.header_offset for e in ordered]
    if starts[0] != 0:
        raise InputError(f"{path}: refused: bytes before its entries", expected)
    for entry, following in zip(ordered, [*starts[1:], directory], strict=True):
        file.seek(entry.header_offset)
        header = file.read(30)
        if len(header) < 30:
            raise InputError(f"{path}: damaged: {entry.filename} lies beyond the end", "restore it from a copy")
        fields = struct.unpack("<4sHHHHHLLLHH", header)
        name = file.read(fields[9])
        if fields[0] != b"PK\x03\x04" or fields[3] != 0 or name != entry.orig_filename.encode():
            raise InputError(f"{path}: refused: {entry.filename} has two headers that differ", expected)
        if entry.compress_size != entry.file_size:
            raise InputError(f"{path}: refused: {entry.filename} has two sizes", expected)
        end = entry.header_offset + 30 + fields[9] + fields[10] + entry.file_size
        if end > following:
            raise InputError(f"{path}: refused: overlapping entries", expected)
        file.seek(end)
        if following - end > 24 or not _is_descriptor(file.read(following - end), entry):
            raise InputError(f"{path}: refused: bytes between its entries", expected)


def _is_descriptor(between: bytes, entry: zipfile.ZipInfo) -> bool:
    """Whether the bytes behind an entry are none, or repeat its checksum and sizes, as torch lets them do."""
    if not between:
        return True
    of_4, of_8 = (entry.file_size.to_bytes(8, "little")[:n] * 2 for n in (4, 8))
    repeated = between.removeprefix(b"PK\x07\x08")
    return bool(entry.flag_bits & 8) and repeated in (entry.CRC.to_bytes(4, "little") + sizes for sizes in (of_4, of_8))


def _safetensors(path: Path, size: int) -> Contents:
    """The header, read by the library, which checks offsets, sizes and types. Nothing in it can run code."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            values = {}
            for name in file.keys():  # noqa: SIM118 (not a dictionary)
                part = file.get_slice(name)
                shape = tuple(part.get_shape())
                if len(shape) > MAX_DEPTH:
                    raise InputError(f"{path}: refused: a tensor of {len(shape)} dimensions", "expected fewer")
                values[name] = TensorRef.of(SAFETENSORS_TYPES.get(part.get_dtype(), "uint8"), shape)
    except (SafetensorError, OSError, ValueError, OverflowError, MemoryError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{path}: damaged or not safetensors: {reason}", "expected a complete .safetensors file"
        ) from None
    return Contents(path, "safetensors", size, values, list(values.items()), metadata)
